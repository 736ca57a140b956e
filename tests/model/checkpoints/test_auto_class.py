"""`AutoModelForCausalLM.from_pretrained` of a LLaVA folder: silent where every weight is accounted for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folders
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from llava.model.checkpoints.files import load_weights

TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.fixture
def report(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a folder with an Auto class; returns the model and transformers' table of keys, "" if none."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()  # a program that was tested before may have silenced it

    def load(folder: Path, **keywords: Any) -> tuple[Any, str]:
        caplog.clear()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **keywords)
        model = model[0] if isinstance(model, tuple) else model
        return model, "".join(record.getMessage() for record in caplog.records)

    yield load
    transformers_logging.set_verbosity(before)


def add_tower(checkpoints: Path) -> Any:
    """What puts a copy of the tower, and its recomputed buffer, into the weights of a folder."""

    def add(weights: dict[str, torch.Tensor]) -> None:
        for name, value in load_weights(checkpoints / "tiny-clip").items():
            if name.startswith("vision_model."):
                weights[TOWER + name.removeprefix("vision_model.")] = value
        weights[f"{TOWER}embeddings.position_ids"] = torch.arange(17)[None]
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    return add


@pytest.mark.parametrize("trained", [False, True], ids=["copy of the tower", "trained tower"])
def test_what_is_accounted_for_is_not_reported(
    trained: bool, report: Any, copy: Any, checkpoints: Path
) -> None:
    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), add_tower(checkpoints), "model.safetensors")
    folders.edit_config(folder, unfreeze_mm_vision_tower=trained)
    model, told = report(folder)
    assert model.get_vision_tower().is_loaded == trained
    assert told == ""


def test_every_family_loads_in_silence(family: str, report: Any, tmp_path: Path, checkpoints: Path) -> None:
    assert report(folders.whole(family, tmp_path / "m", checkpoints))[1] == ""


FAULTS = {
    "missing": (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight"),
    "unexpected": (lambda w: w.update({"model.layers.7.weight": torch.ones(3)}), "layers.7.weight"),
    "projector missing": (lambda w: w.pop("model.mm_projector.0.weight"), "mm_projector.0.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_real_fault_is_loud(fault: str, report: Any, copy: Any, checkpoints: Path) -> None:
    change, named = FAULTS[fault]

    def both(weights: dict[str, torch.Tensor]) -> None:
        add_tower(checkpoints)(weights)
        change(weights)

    told = report(folders.rewrite(copy("llava-tiny-v1.5-st"), both, "model.safetensors"))[1]
    assert "LOAD REPORT" in told and named in told


def test_a_tower_that_would_be_random_is_loud(report: Any, copy: Any) -> None:
    """The config says that the checkpoint brings its tower, and it does not."""
    folder = folders.rewrite(
        copy("llava-tiny-v1.5-st"),
        lambda weights: [weights.pop(name) for name in list(weights) if "vision_tower" in name],
        "model.safetensors",
    )
    folders.edit_config(folder, unfreeze_mm_vision_tower=True)
    assert "vision_tower" in report(folder)[1]


def test_other_shapes_are_shown_before_the_error_that_speaks_of_them(
    report: Any, copy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def narrow(weights: dict[str, torch.Tensor]) -> None:
        weights["model.mm_projector.2.weight"] = weights["model.mm_projector.2.weight"][:, :-1]

    with pytest.raises(RuntimeError, match="above report"):
        report(folders.rewrite(copy("llava-tiny-v1.5-st"), narrow, "model.safetensors"))
    assert "mm_projector.2.weight" in caplog.text


def test_the_lists_of_keys_are_given_when_asked_for(copy: Any) -> None:
    folder = copy("llava-tiny-v1.5-st")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and type(model).__name__ == "LlavaLlamaForCausalLM"
