"""Fixtures of the model room: a tiny tower, tiny models of each family, recorded checkpoints loaded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

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
