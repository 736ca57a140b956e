"""The table of a suite: a model's scores beside the published ones, for a terminal, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava.eval.suites.published import JUDGED, Band, Published, band_of
from llava.eval.tasks.base import JsonValue, Report, Score

MARK = "*"  # of a judged score: its judge is not the one of the published number


@dataclass(frozen=True)
class TaskRow:
    """A task in the table; score is None where it was not run, and `note` says why."""

    task: str
    title: str
    score: Score | None
    published: float | None = None
    band: Band | None = None
    note: str = ""

    @property
    def is_judged(self) -> bool:
        """Whether a judge model has made the score, so that it must not be set beside a published one."""
        return self.task in JUDGED or (self.score is not None and self.score.kind == "judged")

    @property
    def verdict(self) -> str:
        """Say how the score stands to the published one."""
        if self.score is None:
            return self.note
        if self.published is None:
            return self.note
        if self.is_judged:
            return f"{MARK} another judge: not comparable"
        change = f"{self.score.value - self.published:+.1f}"
        if self.band is not None and self.band.low <= self.score.value <= self.band.high:
            change += f", others got {self.band.low:g} to {self.band.high:g}"
        return f"{change}; {self.note}" if self.note else change


def row_of(
    task: str, title: str, report: Report | None, published: Published | None, note: str = ""
) -> TaskRow:
    """Return the row of a task."""
    known = None if published is None else published.scores.get(task)
    band = None if published is None else band_of(published, task)
    return TaskRow(task, title, report.scores[0] if report and report.scores else None, known, band, note)


def cells_of(row: TaskRow) -> tuple[str, ...]:
    """Return a row as texts."""
    value, error, n = "-", "", ""
    if row.score is not None:
        mark = MARK if row.is_judged else ""
        value = f"{row.score.value:.1f}{mark}"
        error = "" if row.score.stderr is None else f"{row.score.stderr:.1f}"
        n = f"{row.score.n:,}"
    published = "" if row.published is None else f"{row.published:.1f}"
    return row.title, value, error, n, published, row.verdict


HEADS = ("task", "score", "stderr", "n", "published", "difference")


def text_of(rows: Sequence[TaskRow], model: str, published: Published | None) -> list[str]:
    """Return the table as lines for a terminal."""
    cells = [HEADS, *(cells_of(one) for one in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, len(HEADS) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [*lines, *_below(rows, model, published)]


def markdown_of(rows: Sequence[TaskRow], model: str, published: Published | None) -> str:
    """Return the table as Markdown."""
    lines = [f"# {_cell(model)}", "", f"| {' | '.join(HEADS)} |", "|---|---:|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(_cell(one) for one in cells_of(row))} |" for row in rows]
    return "\n".join([*lines, "", *(_cell(one) for one in _below(rows, model, published))]) + "\n"


def _cell(text: str) -> str:
    """Return a text that is one cell."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _below(rows: Sequence[TaskRow], model: str, published: Published | None) -> list[str]:
    if published is None:
        return [f"No numbers are published for {model} that are known here."]
    lines = [f"Published: {published.name}, {published.source}."]
    lines += [f"Others with {one.title}: {one.band.source}." for one in rows if one.band and one.score]
    if any(one.score and one.is_judged for one in rows):
        lines.append(f"{MARK} The judges of the published numbers are shut down; another judge gives others.")
    return lines


def json_of(rows: Sequence[TaskRow]) -> list[Mapping[str, JsonValue]]:
    """Return the table as JSON."""
    return [
        {
            "task": one.task,
            "score": None if one.score is None else one.score.value,
            "kind": None if one.score is None else one.score.kind,
            "stderr": None if one.score is None else one.score.stderr,
            "published": one.published,
            "comparable": one.score is not None and one.published is not None and not one.is_judged,
            "band": None if one.band is None else list(one.band),
            "note": one.note,
        }
        for one in rows
    ]
