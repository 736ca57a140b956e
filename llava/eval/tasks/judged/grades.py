"""Answers that a judge grades one by one, from 0 to 1, beside the right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llava.eval.judges.judging import Item
from llava.eval.judges.pairs import rule_of
from llava.eval.judges.wording import Rules, graded_prompt, messages
from llava.eval.tasks.base import Ask, Graded, JsonValue, Report
from llava.eval.tasks.grading import Answered, mean
from llava.eval.tasks.judged.judgement import Judgement

Kinds = Mapping[str, Mapping[str | int, Sequence[str]]]  # a table's title -> question -> its rows


def grade_items(
    pairs: Sequence[tuple[Ask, str]], expected: Mapping[str | int, str], rules: Rules, category: str
) -> list[Item]:
    """Return what a judge is asked about each answer of which the right one is known."""
    rule = rule_of(category, rules, falls_back=True).prompt
    return [
        Item(ask.id, messages(graded_prompt(ask.text, expected[ask.id], text, rule)), {"question_id": ask.id})
        for ask, text in pairs
        if ask.id in expected
    ]


def grades(found: Answered, expected: Mapping[str | int, str], judgement: Judgement, kinds: Kinds) -> Report:
    """Return the mean grade with bounds, and that of each row of the tables; what failed counts nowhere."""
    if judgement.outcome is None:
        return judgement.counted(found.report(()))
    graded = []
    for ask, text in found.pairs:
        if ask.id in expected:
            value = judgement.value(ask.id)
            credit = value if isinstance(value, float | int) else None
            graded.append(Graded(ask.id, text, expected[ask.id], credit, credit is not None, ask.group))
    known = [one for one in graded if one.credit is not None]
    whole, judged = mean("judged score", graded, "judged"), mean("judged score", known, "judged")
    score = replace(judged, low=whole.low, high=whole.high)
    tables: dict[str, dict[str, float]] = {}
    for title, rows_of in kinds.items():
        rows: dict[str, list[float]] = {}
        for one in known:
            for row in rows_of.get(one.id, ()):
                rows.setdefault(row, []).append(one.credit or 0.0)
        tables[f"judged score {title}"] = {
            row: 100 * sum(some) / len(some) for row, some in sorted(rows.items())
        }
    return judgement.counted(found.report((score,), graded, tables=tables))


def words(value: JsonValue) -> list[str]:
    """Return the texts of a list of JSON."""
    return [str(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
