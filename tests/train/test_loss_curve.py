"""The loss curve that a run leaves beside its state."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from llava.train.checkpointing.saving import draw_loss_curve

HISTORY = [{"step": step, "loss": 5.0 / step} for step in range(1, 200)]


def test_curve_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw_loss_curve([*HISTORY, {"step": 199, "train_runtime": 1.0}], tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG" and min(picture.size) >= 400
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_nothing_is_drawn_without_losses(tmp_path: Path) -> None:
    assert not draw_loss_curve([{"step": 1, "train_runtime": 1.0}], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_missing_matplotlib_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level("INFO", logger="llava.train.checkpointing.saving"):
        assert not draw_loss_curve(HISTORY, tmp_path / "loss.png")
    assert "matplotlib is not installed" in caplog.text


def test_curve_shows_the_evaluation_loss(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    orange = (255, 127, 14)
    for name, more in (("without", []), ("with", [{"step": 100, "eval_loss": 2.0}])):
        assert draw_loss_curve([*HISTORY, *more], tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
        assert (orange in colors) == (name == "with")
