"""Benchmarks whose judge sees two answers a question, and the score of the model beside the other's."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llava.eval.judges.pairs import Style, by_question, pair_items, read_context, read_questions
from llava.eval.judges.replies import PAIR
from llava.eval.tasks.base import Ask, Graded, Record, Report, Score, Task, TaskData
from llava.eval.tasks.files import read_lines
from llava.eval.tasks.grading import answered
from llava.eval.tasks.judged.judgement import OPTIONS, Judgement, judge, rules_of
from llava.eval.tasks.questions import checked

MOST = 10.0  # the best score


@dataclass(frozen=True)
class Pair:
    """A judged pair: the score to measure by, the model's, and what both are grouped and tabled by."""

    theirs: float
    ours: float
    group: str
    category: str


class PairTask(Task):
    """A benchmark with answers to measure by; the score is the model's sum beside theirs, in percent."""

    style: ClassVar[Style]
    max_new_tokens = 1024
    options = OPTIONS

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions in their order."""
        return checked(self, map(lambda row: self.ask_of(row, data), self.questions(data)))

    @abstractmethod
    def ask_of(self, row: Record, data: TaskData) -> Ask:
        """Return a line of the question file as a question."""

    def questions(self, data: TaskData) -> list[Record]:
        """Read the question file."""
        return read_questions(data.path(self, "question-file"), self.style)

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Let the judge score the pairs; without one, write what it is to judge."""
        found = answered(self, self.asks(data), answers)
        place = data.path(self, "reference-answers")
        known = {str(ask.id): ask.id for ask in found.asks}  # 1 and "1" are one question
        theirs = {
            known.get(str(key), key): row for key, row in by_question(read_lines(place, {}), place).items()
        }
        latest = {ask.id: {"question_id": ask.id, "text": text} for ask, text in found.pairs}
        ours: dict[str | int, Record] = {}
        for record in answers:
            key = known.get(str(record["question_id"]))
            if key in latest:
                ours[key] = {**record, **latest[key]}
        context = None if self.style.context is None else read_context(data.path(self, "context"), self.style)
        both = (theirs, ours)
        items = pair_items(self.questions(data), both, rules_of(data), style=self.style, context=context)
        judgement = judge(items, answers, data, scale=PAIR)
        groups = {ask.id: ask.group or str(ask.id) for ask, _ in found.pairs}
        pairs, graded = _pairs(judgement, groups, both, {one.id: str(one.row["category"]) for one in items})
        if judgement.outcome is None:
            return judgement.counted(found.report(()))
        lost = judgement.outcome.n_asked - len(pairs)
        report = found.report((relative(pairs, lost),), graded, tables=tables(pairs))
        return judgement.counted(report)


def _pairs(
    judgement: Judgement,
    groups: Mapping[str | int, str],
    answers: tuple[Mapping[str | int, Record], Mapping[str | int, Record]],
    categories: Mapping[str | int, str],
) -> tuple[list[Pair], list[Graded]]:
    """Return what was judged, and how each question came out."""
    pairs, graded = [], []
    for key, category in categories.items():
        value = judgement.value(key)
        credit = None
        if isinstance(value, list):
            pairs.append(Pair(value[0], value[1], groups[key], category))
            credit = min(value[1] / MOST, 1.0)
        theirs, ours = (str(side[key]["text"]) for side in answers)
        graded.append(Graded(key, ours, theirs, credit, parsed=value is not None, group=groups[key]))
    return pairs, graded


def relative(pairs: Sequence[Pair], lost: int = 0) -> Score:
    """Return the sum of the model's scores in percent of the sum of theirs.

    low and high: if the model had 0 in pairs without a judgement, and 10, with 10 for the other.
    stderr: of a ratio of sums (delta method), over groups.
    """
    theirs, ours = math.fsum(one.theirs for one in pairs), math.fsum(one.ours for one in pairs)
    ratio = ours / theirs if theirs else 0.0
    residuals: dict[str, float] = {}
    for one in pairs:
        residuals[one.group] = residuals.get(one.group, 0.0) + one.ours - ratio * one.theirs
    n, squares = len(residuals), math.fsum(one * one for one in residuals.values())
    most = theirs + MOST * lost
    return Score(
        "relative score",
        "judged",
        100 * ratio,
        len(pairs),
        low=100 * ours / most if most else 0.0,
        high=100 * (ours + MOST * lost) / most if most else 0.0,
        stderr=100 * math.sqrt(n / (n - 1) * squares) / theirs if n > 1 and theirs else None,
    )


def tables(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Return the relative score of each category, and both sides' means times ten (as the reference)."""
    of: dict[str, list[Pair]] = {}
    for one in pairs:
        of.setdefault(one.category or "all", []).append(one)
    rows = sorted(of.items())
    return {
        "relative score by category": {name: relative(some).value for name, some in rows},
        "answers to measure by, mean x 10": {
            name: 10 * math.fsum(one.theirs for one in some) / len(some) for name, some in rows
        },
        "the model, mean x 10": {
            name: 10 * math.fsum(one.ours for one in some) / len(some) for name, some in rows
        },
    }


def image_in(folder: Path, name: str, *prefixes: str) -> Path:
    """Return where an image is: under its name, or under its name behind a prefix."""
    names = (name, *(f"{prefix}{name}" for prefix in prefixes))
    return next((folder / one for one in names if (folder / one).exists()), folder / name)
