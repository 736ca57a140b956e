"""The loss curve that a run leaves beside its state."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from llava.train.checkpointing.loss_curve import draw_loss_curve, running_mean

HISTORY = [{"step": step, "loss": 5.0 / step} for step in range(1, 200)]


def test_curve_is_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw_loss_curve([*HISTORY, {"step": 199, "train_runtime": 1.0}], tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as sample_image:
        assert sample_image.format == "PNG" and min(sample_image.size) >= 400
        assert len(sample_image.convert("RGB").getcolors(1 << 20)) > 10


def test_nothing_is_drawn_without_losses(tmp_path: Path) -> None:
    assert not draw_loss_curve([{"step": 1, "train_runtime": 1.0}], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_missing_matplotlib_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level("INFO", logger="llava.train.checkpointing.loss_curve"):
        assert not draw_loss_curve(HISTORY, tmp_path / "loss.png")
    assert "matplotlib is not installed" in caplog.text


def test_curve_shows_the_evaluation_loss(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    orange = (188, 76, 0)
    for name, more in (("without", []), ("with", [{"step": 100, "eval_loss": 2.0}])):
        assert draw_loss_curve([*HISTORY, *more], tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as sample_image:
            colors = {color for _, color in sample_image.convert("RGB").getcolors(1 << 20)}
        assert (orange in colors) == (name == "with")


def test_curve_is_smoothed_and_named(tmp_path: Path) -> None:
    assert running_mean([4.0, 2.0, 0.0, 0.0], 2) == [4.0, 3.0, 1.0, 0.0]
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    (tmp_path / "llava-digits").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *more, **named: drawn.append(self))
        rates = [{**entry, "learning_rate": 1e-3} for entry in HISTORY]
        assert draw_loss_curve(rates, tmp_path / "llava-digits" / "loss.png")
    (figure,) = drawn
    top, bottom = figure.axes
    assert figure.get_suptitle() == "Training loss of llava-digits, 199 steps"
    assert (top.get_ylabel(), bottom.get_xlabel()) == ("cross-entropy (nats per token)", "optimiser step")
    raw, smooth = top.lines
    assert smooth.get_linewidth() > raw.get_linewidth() >= 1
    assert len(smooth.get_xdata()) == len(HISTORY)
