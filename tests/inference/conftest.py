"""Loaded tiny models of every LLM family, and a picture, for the tests of this room."""

from pathlib import Path

import pytest
from PIL import Image

from llava.inference.loading import LoadedModel, open_model

# family -> (checkpoint, conversation template)
FAMILIES = {
    "llama": ("llava-tiny-v1.5", "llava_v1"),
    "mistral": ("llava-tiny-v1.6-mistral", "mistral_instruct"),
    "mpt": ("llava-tiny-mpt", "mpt"),
}
_loaded: dict[str, LoadedModel] = {}


@pytest.fixture(params=FAMILIES)
def family(request, checkpoints: Path) -> tuple[LoadedModel, str]:
    """A model of each family on the CPU in float32, and its template."""
    folder, template = FAMILIES[request.param]
    if request.param not in _loaded:
        loaded = open_model(str(checkpoints / folder), device="cpu")
        loaded.model.float()
        _loaded[request.param] = loaded
    return _loaded[request.param], template


@pytest.fixture
def llama(checkpoints: Path) -> LoadedModel:
    """The Llama model alone, for what does not depend on the family."""
    if "llama" not in _loaded:
        _loaded["llama"] = open_model(str(checkpoints / FAMILIES["llama"][0]), device="cpu")
        _loaded["llama"].model.float()
    return _loaded["llama"]


@pytest.fixture
def picture() -> Image.Image:
    """A wide gradient, so that padding and tiling have something to do."""
    return Image.linear_gradient("L").resize((90, 60)).convert("RGB")
