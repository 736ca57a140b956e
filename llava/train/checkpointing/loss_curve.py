"""The plot of a run: loss over steps, smoothed, with evaluation and learning rate, beside the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.atomic import atomic_file

if TYPE_CHECKING:  # an optional package
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

LOSS_CURVE_FILE = "loss_curve.png"
SMOOTHING = 20  # the mean of an entry and those before it covers one part in this many of the run
BLUE, ORANGE, GREY = "#0969da", "#bc4c00", "#57606a"

LogEntry = Mapping[str, float]


def draw_loss_curve(log_history: Sequence[LogEntry], file: Path) -> bool:
    """Draw training and evaluation loss over optimiser steps as a PNG, the learning rate below.

    log_history: the Trainer's. Returns False, with a message, if there is no loss or no matplotlib.
    """
    points = _points(log_history, "loss")
    if not points:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no loss curve is drawn: matplotlib is not installed (pip install matplotlib)")
        return False
    rates = _points(log_history, "learning_rate")
    figure = Figure(figsize=(9, 5.4 if rates else 4.5))
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        2 if rates else 1, sharex=True, squeeze=False, height_ratios=[4, 1] if rates else None
    )[:, 0]
    _draw_losses(panels[0], points, _points(log_history, "eval_loss"))
    if rates:
        panels[1].plot(*zip(*rates, strict=True), color=GREY, linewidth=1.5)
        panels[1].set(ylabel="learning rate", ylim=(0, None))
        panels[1].ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    figure.suptitle(f"Training loss of {file.parent.name}, {points[-1][0]:,} steps", fontsize=13)
    panels[-1].set_xlabel("optimiser step")
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    # by hand: a layout engine draws everything twice
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.1, top=0.92, hspace=0.14)
    with atomic_file(file) as scratch:
        figure.savefig(scratch, dpi=120, format="png")
    logger.info("loss curve: %s", file)
    return True


def _points(log_history: Sequence[LogEntry], key: str) -> list[tuple[float, float]]:
    """List (step, value) of the entries that have a value."""
    return [(entry["step"], entry[key]) for entry in log_history if key in entry and "step" in entry]


def _draw_losses(
    axes: Axes, points: Sequence[tuple[float, float]], evaluated: Sequence[tuple[float, float]]
) -> None:
    """Draw each logged loss thin, their running mean thick, and the evaluations as points."""
    steps, losses = zip(*points, strict=True)
    window = max(1, len(losses) // SMOOTHING)
    smooth = running_mean(losses, window)
    name = "loss" if window == 1 else f"mean of the last {window} entries: {smooth[-1]:.3f} at the end"
    if window > 1:
        axes.plot(steps, losses, color=BLUE, alpha=0.35, linewidth=1, label="loss")
    axes.plot(steps, smooth, color=BLUE, linewidth=2.2, label=name)
    if evaluated:
        axes.plot(
            *zip(*evaluated, strict=True), color=ORANGE, marker="o", markersize=5, linewidth=1.5,
            label=f"evaluation loss: {evaluated[-1][1]:.3f} at the end",
        )  # fmt: skip
    axes.set(ylabel="cross-entropy (nats per token)", ylim=(0, None))
    axes.legend(frameon=False)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average each value with up to `window - 1` values before it."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
