"""Answers that are graded by what people said: the VQA rule on the annotations of VQAv2 and VizWiz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llava.eval.metrics.vqa import m4c_answer, vqa_accuracy, vqa_answer
from llava.eval.tasks.annotated import AnnotatedTask, Rows
from llava.eval.tasks.base import Ask, Graded, JsonValue, Record, Score
from llava.eval.tasks.files import TEXT, check_rows
from llava.eval.tasks.grading import Answered, mean
from llava.utils import UserError


class PeopleTask(AnnotatedTask):
    """A benchmark whose questions ten people have answered, by the VQA rule.

    The official program normalises what it is given; the reference gives it what M4C's rule has normalised
    before. Where that makes another answer the two scores differ.
    """

    answers_in = "answers"

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Grade an answer as it is by the official rule."""
        people = said_by_people(row, f"{self.name}, question {ask.id}")
        said, usual = vqa_answer(text), Counter(people).most_common(1)[0][0]
        return Graded(ask.id, said, usual, vqa_accuracy(text, people), bool(said), ask.group)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell kinds of answers apart: yes/no, number, other; unanswerable ones of VizWiz."""
        return {"answer type": str(row.get("answer_type"))}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the accuracy of the answers, and of what the reference makes of them for a server."""
        submitted = [self.grade(ask, self.row_of(ask, rows), m4c_answer(text)) for ask, text in found.pairs]
        return [mean("accuracy", graded), mean("accuracy as submitted", submitted, "reference")]


def said_by_people(row: Record, where: str) -> list[str]:
    """Return what people answered; raises UserError where nobody did."""
    told = [str(one["answer"]) for one in check_rows(row["answers"], {"answer": TEXT}, f"{where}, answers")]
    if not told:
        raise UserError(f"{where}: no person's answer is given; expected ten")
    return told


def texts(value: JsonValue, where: str) -> list[str]:
    """Return a list of texts; raises UserError for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise UserError(f"{where}: the answers are no list of texts; expected at least one")
    return value
