"""A question file of one's own, scored by a metric: `python -m llava.eval custom --question-file F`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from llava.eval.judges.judging import Item
from llava.eval.judges.replies import FRACTION
from llava.eval.metrics.anls import anls
from llava.eval.metrics.vqa import vqa_accuracy, vqa_answer
from llava.eval.metrics.words import bleu, word_f1
from llava.eval.tasks.base import Ask, DataFile, Graded, Option, Record, Report, Score, Task, TaskData
from llava.eval.tasks.grading import Answered, answered, mean
from llava.eval.tasks.judged.grades import grade_items, grades
from llava.eval.tasks.judged.judgement import OPTIONS, judge, rules_of
from llava.eval.tasks.own_rows import QuestionRow, read_rows
from llava.eval.tasks.questions import checked
from llava.eval.tasks.rules import letter_of
from llava.utils import UserError, shortened

Rule = Callable[[str, Sequence[str]], float]
FEW = 3  # answers of people; below, the VQA rule could give nobody full credit


def plain(text: str) -> str:
    """Return a text without the differences that `exact` passes over: case, blanks, a period at its end."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def exact(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if a text is one of the answers, regardless of case, blanks and a period at its end."""
    return float(plain(prediction) in {plain(one) for one in answers})


def vqa(prediction: str, answers: Sequence[str]) -> float:
    """Return the VQA accuracy; with fewer than three answers whether the normalised text is one of them."""
    if len(answers) < FEW:
        return float(plain(vqa_answer(prediction)) in {plain(vqa_answer(one)) for one in answers})
    return vqa_accuracy(prediction, answers)


RULES: dict[str, Rule] = {"exact": exact, "vqa": vqa, "anls": anls, "f1": word_f1}
_OF_A_JUDGE = ("judge-model", "judge-base-url", "rule", "reviews")
METRICS = (*RULES, "choice", "bleu", "judge")


class Custom(Task):
    """Questions, images and answers of one's own; docs/custom_evaluation.md shows the format."""

    name = "custom"
    title = "Custom"
    conv_mode = None
    data: ClassVar = (
        DataFile("question-file", "questions.jsonl", "your questions, a JSON object a line"),
        DataFile("image-folder", ".", "where your images are, by default beside the questions", needed=False),
    )
    options = (
        Option("metric", "how answers are compared with the right ones", "exact", METRICS, scoring=True),
        Option(
            "by",
            "a field of the lines by whose values the score is broken down",
            scoring=True,
            compared=False,
        ),
        *OPTIONS,
    )

    def kept_in(self, data: TaskData, what: str) -> Path:
        """Return a folder of each question file's own, beside it, where --question-file names one."""
        given = data.files.get("question-file")
        return super().kept_in(data, what) if given is None else given.parent / what / given.stem

    def check_scoring(self, data: TaskData) -> None:
        """Raise UserError where lines lack what the metric or --by needs, or a judge is not asked."""
        rows = {row.id: row for row in read_rows(data.path(self, "question-file"))}
        metric, by = data.options.get("metric", "exact"), data.options.get("by")
        _check(rows, metric)
        if by is not None:
            for row in rows.values():
                row.values(by)
        useless = [f"--{key}" for key in _OF_A_JUDGE if key in data.options and metric != "judge"]
        if useless:
            raise UserError(f"{', '.join(useless)}: only --metric judge asks a judge, and it is {metric}")

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions; images are sought beside the file, or in --image-folder."""
        return checked(self, (self._ask(row, data) for row in read_rows(data.path(self, "question-file"))))

    def _ask(self, row: QuestionRow, data: TaskData) -> Ask:
        beside = data.path(self, "question-file").parent
        folder = data.files.get("image-folder", beside)
        images = tuple(one if "://" in one else folder / one for one in row.images)
        return Ask(row.id, row.prompt, images, group=row.group)

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Score the answers by --metric, and by each value of --by."""
        self.check_scoring(data)
        rows = {row.id: row for row in read_rows(data.path(self, "question-file"))}
        metric, by = data.options.get("metric", "exact"), data.options.get("by")
        found = answered(self, self.asks(data), answers)
        kinds = {} if by is None else {row.id: row.values(by) for row in rows.values()}
        if metric == "judge":
            shown = {} if by is None else {f"by {by}": kinds}
            items, expected = _items(found, rows, data)
            folder = self.kept_in(data, "reviews")
            return grades(found, expected, judge(items, answers, data, scale=FRACTION, folder=folder), shown)
        graded = [_graded(metric, ask, text, rows[ask.id]) for ask, text in found.pairs]

        def corpus_bleu(some: Sequence[Graded]) -> float:
            return bleu([one.prediction for one in some], [rows[one.id].right for one in some])

        def score(some: Sequence[Graded]) -> Score:
            if metric == "bleu":
                return Score("BLEU-4", "official", 100 * corpus_bleu(some), len(some))
            return mean(metric, some)

        values = sorted({value for one in graded for value in kinds.get(one.id, ())})
        table = {value: score([one for one in graded if value in kinds[one.id]]).value for value in values}
        few = sum(len(row.right) < FEW for row in rows.values()) if metric == "vqa" else 0
        notes = [f"{few} questions have fewer than {FEW} answers; one of them is full credit"] if few else []
        tables = {} if by is None else {f"{metric} by {by}": table}
        return found.report((score(graded),), graded, tables=tables, notes=notes)


def _check(rows: Mapping[str | int, QuestionRow], metric: str) -> None:
    """Raise UserError where the lines lack what a metric compares with."""
    lacking = [row for row in rows.values() if not row.right]
    if lacking:
        raise UserError(
            f"{lacking[0].where} has no answer ({len(lacking)} of {len(rows)} lack one); scores need the "
            "right "
            "one under 'answer', a text or a list (`python -m llava.eval answer custom` asks without)"
        )
    plainly = [row for row in rows.values() if metric == "choice" and not row.choices]
    if plainly:
        raise UserError(f"{plainly[0].where} has no 'choices'; --metric choice needs a list of texts there")


def _graded(metric: str, ask: Ask, text: str, row: QuestionRow) -> Graded:
    """Return what an answer earned."""
    expected = shortened(" | ".join(row.right), 1000)
    if metric == "choice" or row.choices:
        letter = letter_of(text, row.choices)
        return Graded(ask.id, text, expected, float(letter in row.right), letter is not None, ask.group)
    rule = RULES.get(metric, lambda said, right: bleu([said], [right]))
    return Graded(ask.id, text, expected, rule(text, row.right), group=ask.group)


def _items(
    found: Answered, rows: Mapping[str | int, QuestionRow], data: TaskData
) -> tuple[list[Item], dict[str | int, str]]:
    """Return what a judge grades from 0 to 1, by the rule "custom", and the right answers as it sees them."""
    expected = {key: "\n<OR>\n".join(row.right) for key, row in rows.items()}
    return grade_items(found.pairs, expected, rules_of(data), "custom"), expected
