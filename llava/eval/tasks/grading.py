"""From answers to a report: whose question an answer belongs to, what is amiss, means with bounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from llava.eval.tasks.base import Ask, Graded, Kind, Record, Report, Score, Task
from llava.utils import UserError, shortened

Key: TypeAlias = Callable[["str | int", str], tuple[str, str]]


Reader: TypeAlias = Callable[[Record, int], "tuple[str | int, str, str]"]


def by_id(identity: str | int, prompt: str) -> tuple[str, str]:
    """Tell questions apart by their id; 1 and "1" are one."""
    return str(identity), ""


def by_prompt(identity: str | int, prompt: str) -> tuple[str, str]:
    """Tell questions apart by id and prompt, where several have the id of their image."""
    return str(identity), prompt


@dataclass(frozen=True)
class Answered:
    """Answers beside their questions, in the questions' order; the last four hold ids, see Report."""

    asks: tuple[Ask, ...]
    pairs: tuple[tuple[Ask, str], ...]
    missing: tuple[str | int, ...]
    unexpected: tuple[str | int, ...]
    notes: tuple[str, ...]
    repeated: tuple[str | int, ...] = ()
    empty: tuple[str | int, ...] = ()

    def said(self) -> dict[str, str]:
        """Return id -> answer."""
        return {str(ask.id): text for ask, text in self.pairs}

    def report(
        self,
        scores: Sequence[Score],
        graded: Sequence[Graded] = (),
        *,
        tables: Mapping[str, Mapping[str, float]] | None = None,
        written: Sequence[Path] = (),
        notes: Sequence[str] = (),
    ) -> Report:
        """Make a report with the counts of these answers."""
        return Report(
            scores=tuple(scores),
            graded=tuple(graded),
            tables=tables or {},
            asked=len(self.asks),
            answered=len(self.pairs),
            unparsable=sum(not one.parsed for one in graded),
            missing=self.missing,
            unexpected=self.unexpected,
            repeated=self.repeated,
            empty=self.empty,
            notes=(*self.notes, *notes),
            written=tuple(written),
        )


def answered(
    task: Task,
    asks: Iterable[Ask],
    answers: Sequence[Record],
    *,
    key: Key = by_id,
    read: Reader | None = None,
) -> Answered:
    """Put answers beside their questions; key: what both are known by, from id and prompt.

    read: gives id, prompt and text of a record (None: read_record). Of several answers to one question the
    last one counts, as in the reference. Raises UserError where there is no answer, or none of this question
    set, or one that is no text.
    """
    known = tuple(asks)
    if not answers:
        raise UserError(f"{task.name}: the answers file holds no answer; expected one for each question")
    keys = [key(ask.id, ask.prompt) for ask in known]
    places = set(keys)
    texts: dict[tuple[str, str], str] = {}
    unexpected: list[str | int] = []
    repeated: list[str | int] = []
    for number, record in enumerate(answers, start=1):
        identity, prompt, text = read(record, number) if read else read_record(task, record, number)
        found = key(identity, prompt)
        if found not in places:
            unexpected.append(identity)
            continue
        if found in texts:
            repeated.append(identity)
        texts[found] = text
    if not texts:
        raise UserError(
            f"{task.name}: none of the {len(answers)} answers belongs to a question of this data (the first "
            f"is of question {unexpected[0]!r}); expected answers to {task.title}"
        )
    pairs = tuple((ask, texts[one]) for ask, one in zip(known, keys, strict=True) if one in texts)
    missing = tuple(ask.id for ask, one in zip(known, keys, strict=True) if one not in texts)
    empty = tuple(ask.id for ask, text in pairs if not text.strip())
    notes = []
    if repeated:
        notes.append(f"{len(repeated)} answers are to a question that has one already; the last one counts")
    asked_twice = [key for key, count in Counter(keys).items() if count > 1]
    if asked_twice:
        named = some_of([identity for identity, _ in asked_twice])
        notes.append(f"{len(asked_twice)} questions stand in the data more than once: {named}")
    if empty:
        notes.append(f"{len(empty)} answers are empty")
    if unexpected:
        notes.append(f"{len(unexpected)} answers belong to no question of this data")
    if missing:
        notes.append(f"{len(missing)} of {len(known)} questions have no answer; scores are over the others")
    doubled = tuple(dict.fromkeys(repeated))
    return Answered(known, pairs, missing, tuple(unexpected), tuple(notes), doubled, empty)


def some_of(ids: Sequence[str | int], most: int = 5) -> str:
    """Return the first ids as text, "..." for further ones."""
    return ", ".join(shortened(str(one), 60) for one in ids[:most]) + (" ..." if len(ids) > most else "")


def read_record(
    task: Task, record: Record, number: int, *, named: str = "question_id", answer: str = "text"
) -> tuple[str | int, str, str]:
    """Return id, prompt and text of a record; raises UserError that names the record by its number."""
    where = f"{task.name}: answer {number}"
    for name in (named, answer):
        if name not in record:
            raise UserError(f"{where} has no {name!r}; expected a record as `answer` writes it")
    identity, text, prompt = record[named], record[answer], record.get("prompt")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise UserError(
            f"{where} has the {named} {shortened(repr(identity), 60)}; expected a text or a number"
        )
    if not isinstance(text, str):
        raise UserError(f"{where}: {answer!r} is {shortened(repr(text), 60)}; expected a text")
    return identity, prompt if isinstance(prompt, str) else "", text


# ---- numbers ----


def mean(name: str, graded: Sequence[Graded], kind: Kind = "official", *, unit: str = "%") -> Score:
    """Return the mean credit of questions, in percent, with its bounds and its standard error over groups.

    low and high count all that could not be parsed as wrong, and as right. No question gives 0 of n = 0.
    """
    n = len(graded)
    earned = [one.credit or 0.0 for one in graded]
    total = math.fsum(earned)
    unread = math.fsum(1.0 - credit for credit, one in zip(earned, graded, strict=True) if not one.parsed)
    taken = math.fsum(credit for credit, one in zip(earned, graded, strict=True) if not one.parsed)
    if not n:
        return Score(name, kind, 0.0, 0, unit)
    return Score(
        name,
        kind,
        value=100 * total / n,
        n=n,
        unit=unit,
        low=100 * (total - taken) / n,
        high=100 * (total + unread) / n,
        stderr=100 * clustered_error(earned, [one.group or str(one.id) for one in graded]),
    )


def clustered_error(values: Sequence[float], groups: Sequence[str]) -> float:
    """Return the standard error of a mean of values that come in groups (one value a group: the usual one).

    sqrt(G / (G - 1) * sum over groups of (sum of residuals)^2) / n; 0 where there is but one group.
    """
    middle = math.fsum(values) / len(values)
    sums: dict[str, float] = {}
    for value, group in zip(values, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value - middle
    if len(sums) < 2:
        return 0.0
    return math.sqrt(len(sums) / (len(sums) - 1) * math.fsum(one * one for one in sums.values())) / len(
        values
    )


def table(graded: Sequence[Graded], kinds: Sequence[str]) -> dict[str, float]:
    """Return the mean credit in percent of each kind of question; kinds: one for each question."""
    rows: dict[str, list[float]] = {}
    for one, kind in zip(graded, kinds, strict=True):
        rows.setdefault(kind, []).append(one.credit or 0.0)
    return {kind: 100 * math.fsum(earned) / len(earned) for kind, earned in sorted(rows.items())}
