"""Tower weights in a checkpoint whose config does not speak of them; projectors that an adapter brings."""

from __future__ import annotations

import json

import folders
import pytest
import tiny
import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights

TOWER = "model.vision_tower.vision_tower.vision_model."


def stored_tower(copy, checkpoints, change: float):
    """A whole v1.5 checkpoint with a copy of its tower, every weight changed by a factor."""

    def add(weights):
        for name, value in load_weights(checkpoints / "tiny-clip").items():
            if name.startswith("vision_model.") and value.is_floating_point():
                weights[TOWER + name.removeprefix("vision_model.")] = value * (1 + change)

    return folders.rewrite(copy("llava-tiny-v1.5-st"), add, "model.safetensors")


@pytest.mark.parametrize("change", [0.0, 0.25])
def test_a_stored_tower_that_differs_is_named(copy, checkpoints, caplog, change):
    folder = stored_tower(copy, checkpoints, change)
    with caplog.at_level("INFO", logger="llava.model.checkpoints.loading"):
        load_pretrained_model(str(folder), None, "x", device="cpu")
    told = "differ from those of" in caplog.text
    assert told == bool(change)
    assert told or "holds a copy of the vision tower" in caplog.text
    assert ("unfreeze_mm_vision_tower" in caplog.text) == told


@pytest.mark.parametrize(
    "fields", [{"unfreeze_mm_vision_tower": True}, {"mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter"}]
)
def test_a_tower_that_was_trained_is_used(copy, checkpoints, fields):
    folder = stored_tower(copy, checkpoints, 0.25)
    folders.edit_config(folder, **fields)
    model = load_pretrained_model(str(folder), None, "x", device="cpu", dtype="float32")[1]
    name, value = next(iter(model.get_vision_tower().vision_tower.vision_model.named_parameters()))
    assert torch.equal(value, load_weights(folder)[TOWER + name].float())


@pytest.mark.parametrize("whole_base", [False, True])
def test_an_adapter_that_brings_the_projector(checkpoints, tmp_path, whole_base):
    """PEFT's modules_to_save, without non_lora_trainables.bin, on a text base and on a whole LLaVA."""
    from peft import LoraConfig, get_peft_model

    if whole_base:
        base = folders.whole("llama", tmp_path / "base", checkpoints)
    else:
        base = folders.text_base("llama", tmp_path / "base", checkpoints)
    model = tiny.llava_model("llama", checkpoints / "tiny-clip", 3, **folders.base_fields("llama"))
    model.load_state_dict(load_weights(base), strict=False)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], exclude_modules=".*vision_tower.*",
        modules_to_save=["mm_projector"], task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                value.normal_(std=0.1)
    wrapped.save_pretrained(tmp_path / "lora")
    model.config.save_pretrained(tmp_path / "lora")
    adapter = tmp_path / "lora" / "adapter_config.json"
    adapter.write_text(json.dumps({**json.loads(adapter.read_text()), "base_model_name_or_path": str(base)}))
    expected = {n: v for n, v in wrapped.merge_and_unload().state_dict().items() if "vision_tower" not in n}
    loaded = load_pretrained_model(
        str(tmp_path / "lora"), str(base), "x-lora", device="cpu", dtype="float32"
    )[1]
    found = loaded.state_dict()
    rows = len(found["lm_head.weight"])
    for name, value in expected.items():
        assert torch.allclose(
            found[name],
            value[:rows] if name.endswith(("lm_head.weight", "embed_tokens.weight")) else value,
            atol=1e-6,
        ), name
