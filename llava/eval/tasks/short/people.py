"""Answers that are graded by what people said: the VQA rule on the annotations of VQAv2 and VizWiz."""

from __future__ import annotations

from collections import Counter

from llava.eval.metrics.vqa import vqa_accuracy, vqa_answer
from llava.eval.tasks.base import Ask, Graded, JsonValue, Record
from llava.eval.tasks.files import TEXT, check_rows
from llava.utils import UserError


def said_by_people(row: Record, where: str) -> list[str]:
    """Return what people answered; raises UserError where nobody did."""
    told = [str(one["answer"]) for one in check_rows(row["answers"], {"answer": TEXT}, f"{where}, answers")]
    if not told:
        raise UserError(f"{where}: no person's answer is given; expected ten")
    return told


def graded_by_people(ask: Ask, row: Record, text: str, where: str) -> Graded:
    """Grade an answer by the official VQA rule."""
    people = said_by_people(row, where)
    said, usual = vqa_answer(text), Counter(people).most_common(1)[0][0]
    return Graded(ask.id, said, usual, vqa_accuracy(text, people), bool(said), ask.group)


def texts(value: JsonValue, where: str) -> list[str]:
    """Return a list of texts; raises UserError for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise UserError(f"{where}: the answers are no list of texts; expected at least one")
    return value
