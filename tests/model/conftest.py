"""Fixtures of the model room: a tiny tower, tiny models of each family, recorded checkpoints loaded once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny
import torch

from llava.model.builder import load_pretrained_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random CLIP tower."""
    return tiny.tower_folder(tmp_path_factory.mktemp("tower") / "clip")


@pytest.fixture(scope="session")
def build(tower: Path) -> Callable[..., Any]:
    """Build a tiny LLaVA: `build(family, **config changes)`."""
    return lambda family="llama", **changes: tiny.llava_model(family, tower, **changes)


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Name of each LLM family in turn."""
    return request.param


@pytest.fixture(scope="session")
def recorded_model(checkpoints: Path) -> Callable[[str], Any]:
    """Load a recorded checkpoint once, as float32: `recorded_model("v15")`. Tests leave it as it was."""
    models: dict[str, Any] = {}

    def get(key: str) -> Any:
        if key not in models:
            folder, base = recorded.MODELS[key]
            models[key] = load_pretrained_model(
                str(checkpoints / folder), base and str(checkpoints / base), folder, device="cpu"
            )[1].float()
        return models[key]

    return get


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copy a recorded checkpoint: `copy("llava-tiny-v1.5")`."""
    return lambda name: Path(shutil.copytree(checkpoints / name, tmp_path / name))


@pytest.fixture
def vicuna(checkpoints: Path) -> Path:
    """The text model that the recorded projector and adapter were trained on."""
    return checkpoints / "vicuna-tiny"
