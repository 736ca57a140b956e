"""A suite as two charts: bars beside the published scores, and a radar over all tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.atomic import atomic_file
from llava.eval.suites.table import TaskRow
from llava.utils import import_optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FULL = {"mme": 2000.0}  # of a scale that is no percentage
_OURS, _THEIRS = "#2f6fde", "#b9c4d6"


def draw_charts(rows: Sequence[TaskRow], model: str, folder: Path) -> list[Path]:
    """Write bar.png and radar.png (from three tasks on); returns what was written.

    Scores are percentages of the most that a task gives. Raises MissingPackageError without matplotlib.
    """
    shown = [one for one in rows if one.score is not None]
    if not shown:
        return []
    import_optional("matplotlib", needed_for="drawing a suite", install="llava[eval]")
    written = [_save(_bars(shown, model), folder / "bar.png")]
    if len(shown) > 2:
        written.append(_save(_radar(shown, model), folder / "radar.png"))
    return written


def _figure(width: float, height: float) -> Any:
    """Return a figure that needs no display and leaves pyplot alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as scratch:
        figure.savefig(scratch, format="png", dpi=150)
    return path


def share(row: TaskRow, value: float | None) -> float:
    """Return a score in percent of the most that its task gives; 0 for none."""
    return 100 * (value or 0.0) / _FULL.get(row.task, 100.0)


def _bars(rows: Sequence[TaskRow], model: str) -> Any:
    figure = _figure(max(6.0, 0.9 * len(rows)), 4.5)
    axes = figure.add_subplot()
    places = range(len(rows))
    ours = [share(one, one.score.value if one.score else None) for one in rows]
    errors = [share(one, one.score.stderr if one.score else None) for one in rows]
    bars = axes.bar([one - 0.2 for one in places], ours, 0.4, yerr=errors, color=_OURS, label=model)
    axes.bar_label(bars, [f"{one.score.value:.1f}" for one in rows if one.score], fontsize=7, padding=2)
    known = [
        (place, one) for place, one in enumerate(rows) if one.published is not None and not one.is_judged
    ]
    if known:
        axes.bar(
            [place + 0.2 for place, _ in known],
            [share(one, one.published) for _, one in known],
            0.4,
            color=_THEIRS,
            label="published",
        )
    axes.set_xticks(list(places), [one.title for one in rows], rotation=30, ha="right")
    axes.set_ylim(0, 110)
    axes.set_ylabel("% of the highest score")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right", ncols=2)
    return figure


def _radar(rows: Sequence[TaskRow], model: str) -> Any:
    figure = _figure(6.5, 6.5)
    axes = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * place / len(rows) for place in range(len(rows))]

    def line(values: list[float], color: str, label: str) -> None:
        axes.plot([*angles, angles[0]], [*values, values[0]], color=color, label=label)
        axes.fill([*angles, angles[0]], [*values, values[0]], color=color, alpha=0.15)

    if all(one.published is not None and not one.is_judged for one in rows):
        line([share(one, one.published) for one in rows], _THEIRS, "published")
    line([share(one, one.score.value if one.score else None) for one in rows], _OURS, model)
    axes.set_xticks(angles, [one.title for one in rows])
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.2, 1.1))
    return figure
