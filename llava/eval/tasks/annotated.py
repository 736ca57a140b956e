"""Benchmarks with one annotation for each question: what is asked and how it is graded comes from its row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeAlias

from llava.eval.tasks.base import Ask, Graded, Record, Report, Score, TaskData
from llava.eval.tasks.grading import Answered, Key, answered, by_id, mean, read_record, table
from llava.eval.tasks.prompts import LETTERS
from llava.eval.tasks.questions import QuestionTask
from llava.eval.tasks.rules import letter_of

Rows: TypeAlias = Mapping[str, Record]
UNSEEN = "the answers of this split are not published: no score, only a file for the server (--submission)"


class AnnotatedTask(QuestionTask):
    """A benchmark whose annotation file tells questions and answers.

    answers_in: the field that holds the answer; rows that lack it cannot be scored. unseen: the splits whose
    answers are not published, for which the reference's question file is enough.
    """

    answers_in: ClassVar[str] = "answer"
    unseen: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def rows(self, data: TaskData) -> Iterable[tuple[str | int, Record]]:
        """Yield the id and the annotation of each question."""

    @abstractmethod
    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Return the question of an annotation."""

    @abstractmethod
    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Grade an answer."""

    def kinds(self, row: Record) -> dict[str, str]:
        """Return the kinds that a question is of, for tables: title -> kind."""
        return {}

    def key(self) -> Key:
        """Return what answers and questions are known by."""
        return by_id

    def read(self, record: Record, number: int) -> tuple[str | int, str, str]:
        """Return id, prompt and text of a record, which is the `number`th; raises UserError."""
        return read_record(self, record, number)

    def image(self, data: TaskData, name: str) -> Path:
        """Return the place of an image."""
        return data.place(self, "image-folder") / name

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the scores of graded answers; the first one is the task's."""
        return [mean("accuracy", graded)]

    def remarks(self, rows: Rows) -> list[str]:
        """Return what a reader of the scores has to know."""
        return list(self.notes)

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write what a server takes, if data.submission names a file."""
        return []

    def questions(self, data: TaskData) -> Iterator[tuple[Ask, Record]]:
        """Yield the questions with their annotations, for the report."""
        if data.split_of(self) in self.unseen and data.has(self, "question-file"):
            for ask in self.from_reference(data):
                yield ask, {"image": str(ask.group)}
        else:
            yield from ((self.ask(identity, row, data), row) for identity, row in self.rows(data))

    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions of the annotation file."""
        for identity, row in self.rows(data):
            yield self.ask(identity, row, data)

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Grade each answer by its annotation."""
        rows: dict[str, Record] = {}
        asks = []
        for ask, row in self.questions(data):
            rows[_name(self, ask)] = row
            asks.append(ask)
        found = answered(self, asks, answers, key=self.key(), read=self.read)
        written = self.write(found, rows, data)
        if not all(self.answers_in in rows[_name(self, ask)] for ask, _ in found.pairs):
            return found.report([], written=written, notes=(*self.remarks(rows), UNSEEN))
        graded = [self.grade(ask, rows[_name(self, ask)], text) for ask, text in found.pairs]
        kinds = [self.kinds(rows[_name(self, ask)]) for ask, _ in found.pairs]
        tables = {
            title: table(graded, [one.get(title, "none") for one in kinds])
            for title in (kinds[0] if kinds else {})
        }
        scores = self.scores(graded, found, rows)
        return found.report(scores, graded, tables=tables, written=written, notes=self.remarks(rows))

    def row_of(self, ask: Ask, rows: Rows) -> Record:
        """Return the annotation of a question."""
        return rows[_name(self, ask)]


def _name(task: AnnotatedTask, ask: Ask) -> str:
    return "\n".join(task.key()(ask.id, ask.prompt))


class ChoiceTask(AnnotatedTask):
    """A benchmark of choices, graded by the letter that an answer names; see `rules.letter_of`."""

    @abstractmethod
    def choices(self, row: Record) -> list[str]:
        """Return the choices of a question."""

    def wanted(self, row: Record) -> str:
        """Return the letter of the right choice: the annotation says it, or the text of the choice."""
        answer, choices = str(row[self.answers_in]).strip(), [one.strip() for one in self.choices(row)]
        if answer in choices:
            return LETTERS[choices.index(answer)]
        return answer

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Give 1 for the right letter; an answer that names none is not parsed."""
        letter, wanted = letter_of(text, self.choices(row)), self.wanted(row)
        return Graded(ask.id, letter or "", wanted, float(letter == wanted), letter is not None, ask.group)
