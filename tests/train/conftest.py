"""Fixtures of the training tests: data by formula, tokenizers of the recorded labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recorded_training
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images/, pretrain.json and finetune.json: 64 records each."""
    return recorded_training.write_training_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(scope="session")
def variant_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Load a tokenizer variant once: `variant_tokenizer("legacy", max_length=40)`."""
    root = tmp_path_factory.mktemp("tokenizers")
    made: dict[str, Any] = {}

    def get(variant: str, max_length: int | None = None) -> Any:
        if variant not in made:
            folder = recorded_training.tokenizer_folder(root / variant, variant)
            made[variant] = recorded_training.prepared_tokenizer(folder)
        made[variant].model_max_length = 2048 if max_length is None else max_length
        return made[variant]

    return get
