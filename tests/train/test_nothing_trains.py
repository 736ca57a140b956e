"""Flags that freeze every weight are refused before a weight is read; with others something trains."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from recorded_training import flags
from safetensors.torch import save_file

from llava.model.checkpoints.files import load_weights
from llava.train import build
from llava.train import train as train_module
from llava.train.setup.trainable import NOTHING_TRAINS
from llava.utils import UserError

FREEZE = "--freeze_backbone True"
# of runs that freeze the backbone, and whether something else than the head trains
WITH_TOWER = {
    "": True,
    "--freeze_mm_mlp_adapter True": False,
    "--freeze_mm_mlp_adapter True --lora_enable True --lora_r 2": True,
    "--freeze_mm_mlp_adapter True --unfreeze_mm_vision_tower True": True,
    "--freeze_mm_mlp_adapter True --mm_patch_merge_type spatial_unpad": True,  # a new image_newline
}
TEXT_ONLY = {"": False, "--lora_enable True --lora_r 2": True}


class Loading(Exception):
    """Weights are about to be read."""


def _start(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    train_module.train()


@pytest.fixture(scope="module")
def bases(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoints, and each as {name}-tied: its embedding is its head."""
    root = tmp_path_factory.mktemp("bases")
    for name in ("vicuna-tiny", "llava-tiny-v1.6"):
        shutil.copytree(checkpoints / name, root / name)
        shutil.copytree(checkpoints / name, root / f"{name}-tied")
        tied = root / f"{name}-tied"
        config_file = tied / "config.json"
        config = json.loads(config_file.read_text())
        config_file.write_text(json.dumps({**config, "tie_word_embeddings": True}))
        weights = load_weights(tied)
        for file in (*tied.glob("pytorch_model*"), *tied.glob("model*")):
            file.unlink()
        del weights["lm_head.weight"]
        save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
    return root


def _argv(
    bases: Path, checkpoints: Path, data: Path, out: Path, more: str, *, base: str, sees: bool
) -> list[str]:
    records = "finetune.json" if sees else "text.json"
    argv = flags(checkpoints, data, out, f"--data_path {data}/{records} --version v1 {FREEZE} {more}")
    if not sees:
        turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]
        (data / records).write_text(json.dumps([{"id": "a", "conversations": turns}] * 8))
    at = argv.index("--model_name_or_path")
    argv[at + 1] = str(bases / base)
    if not sees:
        at = argv.index("--vision_tower")
        del argv[at : at + 2]
    return argv


ROWS = [
    *(
        (more, "vicuna-tiny", tied, True, trains)
        for (more, trains), tied in product(WITH_TOWER.items(), (0, 1))
    ),
    *(
        (more, "vicuna-tiny", tied, False, trains)
        for (more, trains), tied in product(TEXT_ONLY.items(), (0, 1))
    ),
    # the newline of a checkpoint is frozen with its backbone
    *(
        (f"--freeze_mm_mlp_adapter True --mm_patch_merge_type {kind}", "llava-tiny-v1.6", tied, True, False)
        for kind, tied in product(("spatial_unpad", "flat"), (0, 1))
    ),
]


@pytest.mark.parametrize(("more", "base", "tied", "sees", "trains"), ROWS)
def test_what_trains_is_known_before_weights_are_read(
    more: str,
    base: str,
    tied: int,
    sees: bool,
    trains: bool,
    bases: Path,
    checkpoints: Path,
    training_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise Loading

    monkeypatch.setattr(build, "from_pretrained", load)
    name = f"{base}-tied" if tied else base
    argv = _argv(bases, checkpoints, training_data, tmp_path / "out", more, base=name, sees=sees)
    with pytest.raises(UserError if tied and not trains else Loading) as caught:
        _start(monkeypatch, argv)
    if tied and not trains:
        assert str(caught.value) == NOTHING_TRAINS
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "base", "tied", "sees", "trains"), [row for row in ROWS if row[2]])
def test_the_model_itself_says_the_same(
    more: str,
    base: str,
    tied: int,
    sees: bool,
    trains: bool,
    bases: Path,
    checkpoints: Path,
    training_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def logged(*args: Any) -> None:
        raise Loading  # something trains

    monkeypatch.setattr(train_module, "check_something_trains", lambda *args: None)
    monkeypatch.setattr(build.distributed, "split_by_layers", logged)
    argv = _argv(bases, checkpoints, training_data, tmp_path / "out", more, base=f"{base}-tied", sees=sees)
    with pytest.raises(Loading if trains else UserError) as caught:
        _start(monkeypatch, argv)
    assert trains or str(caught.value) == NOTHING_TRAINS


def test_a_stored_head_is_left_for_the_model_to_tell(
    bases: Path, checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untied = tmp_path / "untied"
    shutil.copytree(bases / "vicuna-tiny-tied", untied)
    weights = load_weights(untied)
    head = weights["model.embed_tokens.weight"] + 1
    save_file({**weights, "lm_head.weight": head}, untied / "model.safetensors", metadata={"format": "pt"})

    def load(*args: Any, **kwargs: Any) -> Any:
        raise Loading

    monkeypatch.setattr(build, "from_pretrained", load)
    more = "--freeze_mm_mlp_adapter True"
    argv = _argv(bases, checkpoints, training_data, tmp_path / "o", more, base=str(untied), sees=True)
    with pytest.raises(Loading):
        _start(monkeypatch, argv)
