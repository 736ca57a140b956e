"""Weights that are neither loaded as they are stored nor faults: `inspect` names each, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import faults
from llava.model.checkpoints.files import load_weights, read_tensors, save_tensors
from llava.model.tools import report_text

INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
POSITIONS = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"


def changed(copy: Any, change: Callable[[dict[str, torch.Tensor]], Any], **fields: Any) -> Path:
    """A whole checkpoint that stores its tower, with other weights and config fields."""
    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), change, "model.safetensors")
    folders.edit_config(folder, **fields)
    return folder


def recomputed(copy: Any, checkpoints: Path) -> Path:
    return changed(copy, lambda w: w.update({INV_FREQ: torch.ones(4), POSITIONS: torch.arange(17)[None]}))


def tower_copy(copy: Any, checkpoints: Path) -> Path:
    return changed(copy, lambda w: None)


def no_tower(copy: Any, checkpoints: Path) -> Path:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "vision_tower" in name]:
            del weights[name]

    return changed(copy, drop, unfreeze_mm_vision_tower=True)


def newline(copy: Any, checkpoints: Path) -> Path:
    folder = copy("llava-tiny-pretrain")
    weights = read_tensors(folder / "mm_projector.bin")
    save_tensors({**weights, "model.image_newline": torch.ones(64)}, folder / "mm_projector.bin")
    return folder


def start_end(copy: Any, checkpoints: Path) -> Path:
    """A LoRA that was trained with two new tokens."""
    folder = copy("llava-tiny-v1.5-lora")
    folders.edit_config(folder, mm_use_im_start_end=True, vocab_size=1002)
    file = folder / "non_lora_trainables.bin"
    rows = {f"new_token_rows.{name}": torch.ones(2, 64) for name in ("input", "output")}
    save_tensors({**read_tensors(file), **rows}, file)
    return folder


def more_rows(copy: Any, checkpoints: Path) -> Path:
    def add(weights: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = torch.cat((weights[name], weights[name][:24]))

    return changed(copy, add, vocab_size=1024)


ROWS = ["model.embed_tokens.weight", "lm_head.weight"]
CASES: dict[str, tuple[Callable[[Any, Path], Path], str, list[str]]] = {
    "recomputed": (recomputed, faults.RECOMPUTED, [INV_FREQ, POSITIONS]),
    "copy of the tower": (
        tower_copy, faults.TOWER_COPY, ["model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight"]
    ),
    "text half of CLIP": (tower_copy, faults.TOWER_REST, ["logit_scale"]),
    "tower left out": (no_tower, faults.TOWER_FILES, ["vision_model.pre_layrnorm.weight"]),
    "base without projector": (start_end, faults.BROUGHT, ["model.mm_projector.0.weight"]),
    "image_newline": (newline, faults.NEWLINE, ["model.image_newline"]),
    "rows of new tokens": (start_end, faults.NEW_ROWS, ["new_token_rows.input", "new_token_rows.output"]),
    "rows that are not stored": (start_end, faults.MEAN_ROWS, ROWS),
    "rows beyond the tokens": (more_rows, faults.CUT_ROWS, ROWS),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_exemption_is_listed(case: str, copy: Any, checkpoints: Path) -> None:
    make, reason, names = CASES[case]
    folder = make(copy, checkpoints)
    base = str(checkpoints / "vicuna-tiny") if folder.name.endswith(("lora", "pretrain")) else None
    report = report_text.inspected(str(folder), base, verify=True)
    assert report.can_chat, report.problems
    found = report.exempt[reason]
    assert all(any(one.endswith(name) for one in found) for name in names)
    assert any(line.startswith(f"  exempt:            {reason}: ") for line in report_text.lines(report))
    assert json.loads(report_text.written(report, as_json=True))["exempt"] == report.exempt
    assert found == list(dict.fromkeys(found))


def test_the_reasons_are_the_ones_tested() -> None:
    known = {value for name, value in vars(faults).items() if name.isupper() and isinstance(value, str)}
    read_later = {faults.TOWER_BEHIND}  # inspection holds the tower whole: test_layers_on_demand.py has it
    assert known == {reason for _, reason, _ in CASES.values()} | read_later


def test_all_stored_weights_are_loaded_or_exempt(copy: Any, checkpoints: Path) -> None:
    """What the report does not name is in the model as it is stored."""
    folder = recomputed(copy, checkpoints)
    exempt: dict[str, list[str]] = {}
    model = load_pretrained_model(str(folder), None, "x", device="cpu", dtype="float32", exempt=exempt)[1]
    state, stored = model.state_dict(), load_weights(folder)
    report = report_text.inspected(str(folder), None, verify=False).exempt
    named = {name for names in report.values() for name in names}
    assert set(stored) - named == {name for name in state if "vision_tower" not in name}
    assert all(torch.equal(state[name], stored[name].float()) for name in set(stored) - named)
    assert set(exempt[faults.TOWER_COPY]) == set(report[faults.TOWER_COPY])
