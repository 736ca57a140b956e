"""convert_hf with every spelling of tower keys and with weights of several dtypes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import recorded
import torch
import transformers
from convert_folders import changed_copy, weights
from safetensors.torch import save_file

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, load_weights, read_config
from llava.model.conversion.weights import tower_weights
from llava.model.convert_hf import from_hf, to_hf

LEVEL = "vision_model."
TOWER = "model.vision_tower.vision_tower.vision_model."


def tower_as(spelling: str, checkpoints: Path, folder: Path) -> Path:
    """Write the tiny CLIP's tower as others have it: a whole CLIP, transformers 4 or 5."""
    source = checkpoints / "tiny-clip"
    if spelling == "whole CLIP":
        return Path(shutil.copytree(source, folder))
    model = transformers.CLIPVisionModel.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(folder, save_original_format=False)
    shutil.copy(source / "preprocessor_config.json", folder)
    if spelling == "transformers 4":
        state = {LEVEL + name: value for name, value in load_weights(folder).items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


SPELLINGS = ("transformers 5", "transformers 4", "whole CLIP")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_tower_keys_converts(spelling: str, checkpoints: Path, tmp_path: Path) -> None:
    """A LLaVA on such a tower, to transformers and back, and to a folder of its own."""
    tower = tower_as(spelling, checkpoints, tmp_path / "clip")
    prefixes = {name.startswith(LEVEL) for name in load_weights(tower)}
    assert prefixes == {"transformers 5": {False}, "transformers 4": {True}}.get(spelling, {True, False})
    source = changed_copy(checkpoints / "llava-tiny-v1.5", tmp_path / "llava", mm_vision_tower=str(tower))
    report = to_hf(str(source), tmp_path / "hf")
    assert report is not None and report.passed
    names = {name for name in weights(tmp_path / "hf") if name.startswith("vision_tower.")}
    assert all(name.startswith("vision_tower.vision_model.") for name in names)
    assert len(names) == len(dict(tower_weights(checkpoints / "tiny-clip")))
    _, ours, _, _ = load_pretrained_model(str(source), None, "llava", device="cpu", dtype=torch.float32)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    image = theirs.config.image_token_index
    with torch.no_grad():
        our_logits = ours(input_ids=torch.tensor([[1, -200, 5, 6]]), images=pixels).logits
        ids = torch.tensor([[1, *[image] * 16, 5, 6]])
        their_logits = theirs(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(their_logits[..., :1000], our_logits[..., :1000], atol=1e-5, rtol=1e-5)
    # back on that tower: bit for bit the same weights, so the checkpoint needs no copy of them
    back = from_hf(str(tmp_path / "hf"), tmp_path / "back", vision_tower=str(tower))
    assert back is not None and back.passed
    assert read_config(tmp_path / "back")["unfreeze_mm_vision_tower"] is False


def test_a_tower_without_the_level_in_a_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    """Ports of LLaVA to transformers 5 lose `vision_model.` in their own tower's names."""
    source = changed_copy(
        checkpoints / "llava-tiny-v1.6", tmp_path / "llava", mm_vision_tower=str(checkpoints / "tiny-clip")
    )
    to_hf(str(source), tmp_path / "hf", parity=None)
    renamed = {name.replace(TOWER, TOWER.removesuffix(LEVEL)): v for name, v in load_weights(source).items()}
    for file in source.glob("*model*.*"):
        if file.name != "tokenizer.model":
            file.unlink()
    save_file(renamed, source / "model.safetensors", {"format": "pt"})
    to_hf(str(source), tmp_path / "again", parity=None)
    one, other = weights(tmp_path / "hf"), weights(tmp_path / "again")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_tower_that_lacks_a_weight(checkpoints: Path, tmp_path: Path) -> None:
    tower = tower_as("transformers 5", checkpoints, tmp_path / "clip")
    state = load_weights(tower)
    del state["encoder.layers.1.mlp.fc1.bias"]
    save_file(state, tower / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks weights of its tower: encoder\.layers\.1\.mlp\.fc1\.bias"
    ):
        dict(tower_weights(tower))


def test_another_tower_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=56, patch_size=14
    )
    config.save_pretrained(tmp_path / "siglip")
    source = changed_copy(
        checkpoints / "llava-tiny-v1.5", tmp_path / "llava", mm_vision_tower=str(tmp_path / "siglip")
    )
    with pytest.raises(CheckpointError, match="'siglip_vision_model'.*convert_hf knows CLIPVisionTower"):
        to_hf(str(source), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


# ------------------------------------------------------------------------------------------------- dtypes

BRINGS = {"projector": "mm_projector.bin", "lora": "non_lora_trainables.bin"}


@pytest.mark.parametrize("key", BRINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_weight_keeps_its_dtype(
    key: str, dtype: torch.dtype, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projector of another dtype than the LLM, with values that float16 cannot hold."""
    monkeypatch.chdir(checkpoints)
    folder, base = recorded.MODELS[key]
    assert base is not None
    source = Path(shutil.copytree(checkpoints / folder, tmp_path / "llava"))
    brought = torch.load(source / BRINGS[key], weights_only=True)
    fine = {name: (value.float() * 1.0003 + 1e-6).to(dtype) for name, value in brought.items()}
    torch.save(fine, source / BRINGS[key])
    text = {name: value.dtype for name, value in load_weights(base).items()}
    report = to_hf(str(source), tmp_path / "hf", base=base, conv_mode="llava_v1")
    assert report is not None and report.passed
    assert report.logit_difference <= 1e-5  # with what is stored, not with a rounding of it
    found = weights(tmp_path / "hf")
    for index, layer in ((0, 1), (2, 2)):
        for part in ("weight", "bias"):
            exported = found[f"multi_modal_projector.linear_{layer}.{part}"]
            name = next(one for one in fine if one.endswith(f"mm_projector.{index}.{part}"))
            assert exported.dtype == dtype
            assert torch.equal(exported, fine[name])
    for name, value in found.items():
        own = name.removeprefix("language_model.")
        if own in text:
            assert value.dtype == text[own], name
    stored_tower = dict(tower_weights("tiny-clip"))
    name = "pre_layrnorm.weight"
    assert torch.equal(found[f"vision_tower.vision_model.{name}"], stored_tower[TOWER + name])


def test_a_base_of_several_dtypes(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms in float32 beside float16 matrices stay so under an adapter."""
    monkeypatch.chdir(checkpoints)
    folder, base = recorded.MODELS["lora"]
    mixed = Path(shutil.copytree(checkpoints / str(base), tmp_path / "base"))
    state = load_weights(mixed)
    state = {n: (v.float() * 1.0003).clone() if "norm" in n else v.half() for n, v in state.items()}
    for file in [*mixed.glob("*.safetensors*"), *mixed.glob("pytorch_model*")]:
        file.unlink()
    save_file(state, mixed / "model.safetensors", {"format": "pt"})
    report = to_hf(folder, tmp_path / "hf", base=str(mixed), conv_mode="llava_v1")
    assert report is not None and report.passed and report.logit_difference <= 1e-5
    found = weights(tmp_path / "hf")
    for name, value in state.items():
        exported = found[f"language_model.{name}"]
        assert exported.dtype == value.dtype, name
        if "norm" in name:
            assert torch.equal(exported, value), name
    adapted = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(found[f"language_model.{adapted}"], state[adapted])


def test_extraction_keeps_the_dtype(checkpoints: Path, tmp_path: Path) -> None:
    from llava.model.tools.extract import extract_projector

    for key, name in BRINGS.items():
        source = Path(shutil.copytree(checkpoints / recorded.MODELS[key][0], tmp_path / key))
        brought: dict[str, Any] = torch.load(source / name, weights_only=True)
        torch.save({one: value.bfloat16() for one, value in brought.items()}, source / name)
        extract_projector(str(source), str(tmp_path / f"{key}.bin"))
        found = torch.load(tmp_path / f"{key}.bin", weights_only=True)
        assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert json.loads((source / "config.json").read_text())
