"""Training from a checkpoint that is stored in 8 or 4 bit: what cannot work is told before it is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from recorded_training import flags

from llava.model.builder import load_pretrained_model
from llava.train import build
from llava.train import train as train_module
from llava.utils import UserError


class Loading(Exception):
    """Weights are about to be read."""


@pytest.fixture(scope="module", params=[8, 4])
def stored(
    request: pytest.FixtureRequest, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("stored") / "llava-quantised"
    bits: Any = {f"load_{request.param}bit": True}
    whole = str(checkpoints / "llava-tiny-v1.5-st")
    tokenizer, model, _, _ = load_pretrained_model(whole, None, "x", device="cpu", dtype="float32", **bits)
    for one in (model, tokenizer):
        one.save_pretrained(folder)
    return folder, request.param


def start(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise Loading

    monkeypatch.setattr(build, "from_pretrained", load)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    train_module.train()


@pytest.mark.parametrize("more", ["", "--tune_mm_mlp_adapter True", "--bits {other} --lora_enable True"])
def test_what_does_not_train_is_refused(
    more: str,
    stored: tuple[Path, int],
    checkpoints: Path,
    training_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, bits = stored
    more = f"--version v1 --data_path {{data}}/finetune.json {more.replace('{other}', str(12 - bits))}"
    argv = flags(checkpoints, training_data, tmp_path / "out", more, base=str(folder))
    with pytest.raises(UserError, match=f"{folder} is stored in {bits} bit") as caught:
        start(argv, monkeypatch)
    assert "\n" not in str(caught.value)


def test_where_adapters_on_it_are_loaded_is_told(
    stored: tuple[Path, int],
    checkpoints: Path,
    training_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loader puts adapters on weights of 16 and 32 bit alone."""
    folder, bits = stored
    more = "--version v1 --data_path {data}/finetune.json --lora_enable True"
    with pytest.raises(Loading):
        start(flags(checkpoints, training_data, tmp_path / "out", more, base=str(folder)), monkeypatch)
    assert f"{folder} is stored in {bits} bit" in caplog.text and "--model-base" in caplog.text
