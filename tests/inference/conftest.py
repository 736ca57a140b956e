"""Loaded tiny models of every LLM family, and an image, for the tests of this room."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.inference.loading import LoadedModel, open_model

# family -> (checkpoint, conversation template)
FAMILIES = {
    "llama": ("llava-tiny-v1.5", "llava_v1"),
    "mistral": ("llava-tiny-v1.6-mistral", "mistral_instruct"),
    "mpt": ("llava-tiny-mpt", "mpt"),
}
_loaded: dict[str, LoadedModel] = {}


@pytest.fixture
def load_family(checkpoints: Path) -> Callable[[str], tuple[LoadedModel, str]]:
    """A function that gives a family's model on the CPU in float32, and its template; loads each once."""

    def load(name: str) -> tuple[LoadedModel, str]:
        folder, template = FAMILIES[name]
        if name not in _loaded:
            # not the machine's best dtype: some machines would round the weights
            _loaded[name] = open_model(str(checkpoints / folder), device="cpu", dtype=torch.float32)
        return _loaded[name], template

    return load


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, load_family: Callable) -> tuple[LoadedModel, str]:
    """Each family in turn."""
    return load_family(request.param)


@pytest.fixture
def llama(load_family: Callable) -> LoadedModel:
    """The Llama model alone, for what does not depend on the family."""
    return load_family("llama")[0]


@pytest.fixture
def sample_image() -> Image.Image:
    """A wide gradient, so that padding and tiling have something to do."""
    return Image.linear_gradient("L").resize((90, 60)).convert("RGB")
