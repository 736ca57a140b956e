"""Deltas and consolidation of what is something else than it is taken for, or does not fit into float16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import edit_config, rewrite

from llava.model.apply_delta import apply_delta
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.errors import CheckpointError
from llava.model.consolidate import consolidate_ckpt
from llava.model.convert_hf import to_hf
from llava.model.make_delta import make_delta

WHOLE, DELTA, BASE = "llava-tiny-v0", "llava-tiny-v0-delta", "vicuna-tiny"


def refused(call: Callable[..., Any], *arguments: object, told: str, target: Path) -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        call(*map(str, arguments))
    assert "\n" not in str(caught.value) and not target.exists()


def test_a_delta_is_not_applied_to_what_has_its_base(checkpoints: Path, tmp_path: Path) -> None:
    """Applied twice, every weight would have the base's values twice."""
    out = tmp_path / "out"
    told = "llava-tiny-v0 is a whole model, not a delta"
    refused(apply_delta, checkpoints / BASE, out, checkpoints / WHOLE, told=told, target=out)


def test_no_delta_is_made_of_a_delta(checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = "llava-tiny-v0-delta is a delta, not a whole model"
    refused(make_delta, checkpoints / BASE, checkpoints / DELTA, out, told=told, target=out)


@pytest.mark.parametrize("tool", [make_delta, apply_delta])
def test_base_and_target_are_not_swapped(tool: Any, checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    llava, text = checkpoints / WHOLE, checkpoints / BASE
    arguments = (llava, text, out) if tool is make_delta else (llava, out, text)
    refused(tool, *arguments, told=f"{llava} sees images and {text} does not.*other way", target=out)


@pytest.fixture(params=[8, 4])
def quantised(request: pytest.FixtureRequest, checkpoints: Path, tmp_path: Path) -> Path:
    tokenizer, model, _, _ = load_pretrained_model(
        str(checkpoints / WHOLE),
        None,
        "x",
        device="cpu",
        dtype="float32",
        **{f"load_{request.param}bit": True},
    )
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "quantised")
    return tmp_path / "quantised"


def test_quantised_weights_are_no_numbers_to_add(quantised: Path, checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = f"{quantised} is stored in [48] bit"
    refused(make_delta, checkpoints / BASE, quantised, out, told=told, target=out)
    refused(make_delta, quantised, checkpoints / WHOLE, out, told=told, target=out)
    refused(to_hf, quantised, out, told=told, target=out)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_values_beyond_float16_are_not_lost(
    value: float, copy: Callable[[str], Path], checkpoints: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.down_proj.weight"

    def change(weights: dict[str, Any]) -> None:
        weights.update({key: one.float() for key, one in weights.items()})
        weights[name][0, 0] = value

    folder = rewrite(copy(WHOLE), change, "model.safetensors")
    edit_config(folder, dtype="float32", torch_dtype="float32")
    out = tmp_path / "out"
    told = f"{name} has values that are not finite in float16"
    refused(consolidate_ckpt, folder, out, told=told, target=out)
    refused(make_delta, checkpoints / BASE, folder, out, told=told, target=out)


def test_a_delta_that_is_loaded_as_a_model_is_told(
    checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_pretrained_model(str(checkpoints / WHOLE), None, "x", device="cpu")
    assert "delta" not in caplog.text.replace(str(checkpoints), "")
    load_pretrained_model(str(checkpoints / DELTA), None, "x", device="cpu")
    assert f"{checkpoints / DELTA} looks like a delta" in caplog.text and "apply_delta" in caplog.text
