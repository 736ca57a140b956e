"""Towers that a checkpoint stores without their last layer and head, as LLaVA-NeXT stores SigLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, load_weights
from llava.model.multimodal_encoder import published

TOWER = "model.vision_tower.vision_tower.vision_model."
NAME = "google/siglip-so400m-patch14-384"
LAYERS = 3


def siglip(**fields: Any) -> SiglipVisionConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 28}
    return SiglipVisionConfig(**{**sizes, "num_hidden_layers": LAYERS, "patch_size": 7, **fields})


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> tuple[Path, Any]:
    """A LLaVA whose tower is stored without its last layer and head, and the whole tower."""
    torch.manual_seed(0)
    whole = SiglipVisionModel(siglip())
    with torch.no_grad():
        for value in whole.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    whole.save_pretrained(tmp_path / "tower")
    folder = folders.whole(
        "llama", tmp_path / "ov", checkpoints, mm_vision_tower=str(tmp_path / "tower"),
        mm_tunable_parts="mm_vision_tower,mm_mlp_adapter,mm_language_model", mm_hidden_size=16,
    )  # fmt: skip

    def add(weights: dict[str, torch.Tensor]) -> None:
        for name in [one for one in weights if "vision_tower" in one]:
            del weights[name]
        for name, value in whole.state_dict().items():
            if not name.startswith((f"encoder.layers.{LAYERS - 1}.", "head.")):
                weights[TOWER + name] = value * 1.5

    folders.rewrite(folder, add, "model.safetensors")
    known = {**siglip().to_dict(), "model_type": "siglip_vision_model"}
    monkeypatch.setitem(published.PUBLISHED, NAME, known)
    folders.edit_config(folder, mm_vision_tower=NAME)
    return folder, whole


def load(folder: Path) -> Any:
    return load_pretrained_model(str(folder), None, "llava", device="cpu", dtype=torch.float32)


def test_a_short_tower_loads_without_its_own_files_and_is_saved_as_it_was(
    short: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, whole = short
    tokenizer, model, processor, _ = load(folder)
    tower = model.get_vision_tower()
    assert len(tower.vision_tower.vision_model.encoder.layers) == LAYERS - 1
    assert dict(processor.size) == {"height": 28, "width": 28}
    assert (processor.resample, list(processor.image_mean)) == (3, [0.5, 0.5, 0.5])
    with torch.no_grad():
        for value in whole.parameters():
            value.mul_(1.5)
        pixels = torch.randn(2, 3, 28, 28)
        assert torch.equal(tower(pixels), whole(pixels, output_hidden_states=True).hidden_states[-2])
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    before, after = load_weights(folder), load_weights(tmp_path / "again")
    assert set(before) == set(after)
    again = load(tmp_path / "again")[1]
    ids = tiny.prompt(3, "image", 2)
    with torch.no_grad():
        one, other = (each(input_ids=ids, images=pixels[:1]).logits for each in (model, again))
    assert torch.equal(one, other)


def test_a_trained_short_tower(short: tuple[Path, Any]) -> None:
    tower = load(short[0])[1].get_vision_tower()
    tower.unfreeze()
    tower(torch.randn(1, 3, 28, 28)).sum().backward()
    assert all(one.grad is not None for one in tower.vision_tower.vision_model.encoder.parameters())


def test_a_layer_that_is_not_stored_cannot_be_selected(short: tuple[Path, Any]) -> None:
    tower = load(short[0])[1].get_vision_tower()
    tower.select_layer = -1
    with pytest.raises(ValueError, match="needs 3 layers.*stores 2 of the 3.*expected -2"):
        tower(torch.randn(1, 3, 28, 28))


@pytest.mark.parametrize("lost", ["encoder.layers.0.mlp.fc1.weight", "embeddings.patch_embedding.weight"])
def test_a_needed_weight_that_is_missing_is_named(short: tuple[Path, Any], lost: str) -> None:
    folders.rewrite(short[0], lambda weights: weights.pop(TOWER + lost), "model.safetensors")
    with pytest.raises(CheckpointError, match=f"only .* of the vision tower's weights; missing: .*{lost}"):
        load(short[0])


def test_weights_of_a_published_tower_are_never_made_up(short: tuple[Path, Any]) -> None:
    """Its config is known, its weights are not."""
    folder, _ = short
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "mm_tunable_parts": None}))
    with pytest.raises(CheckpointError, match=NAME):
        load(folder)
