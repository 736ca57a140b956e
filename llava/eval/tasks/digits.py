"""Handwritten digits: the held-out questions of the quickstart, with one image, with two, and without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Report, Said, Task, TaskData
from llava.eval.tasks.grading import answered, mean, table
from llava.utils import UserError, shortened

_FIELDS = ("id", "kind", "images", "question", "answer")


class Digits(Task):
    """scikit-learn's digits as `scripts/quickstart.sh` writes them; an answer is the expected word."""

    name = "digits"
    title = "Digits"
    conv_mode = None
    max_new_tokens = 8
    data: ClassVar = (
        DataFile(
            "question-file",
            "test.json",
            "questions of the quickstart",
            "scripts/quickstart.sh (it makes them of scikit-learn's digits)",
            "BSD 3-Clause (scikit-learn); CC BY 4.0 (UCI)",
            count=4609,
        ),
        DataFile("image-folder", "images", "images of the quickstart"),
    )

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions of test.json."""
        yield from asks_of(read_questions(data.path(self, "question-file")), data.path(self, "image-folder"))

    def record(self, ask: Ask, said: Said) -> Record:
        """Return a record with the kind and the expected answer in its metadata."""
        return super().record(ask, said) | {"metadata": dict(ask.extra)}

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Count right answers, of all questions and of each kind."""
        found = answered(self, self.asks(data), answers)
        graded = [
            Graded(
                ask.id,
                text,
                str(ask.extra["expected"]),
                float(is_right(text, str(ask.extra["expected"]))),
                group=ask.group,
            )
            for ask, text in found.pairs
        ]
        kinds = table(graded, [str(ask.extra["kind"]) for ask, _ in found.pairs])
        return found.report([mean("accuracy", graded)], graded, tables={"accuracy by kind": kinds})


def asks_of(questions: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[Ask]:
    """Yield the questions of test.json as they are asked; folder: of their images."""
    for one in questions:
        images = tuple(folder / name for name in one["images"])
        extra = {"kind": one["kind"], "expected": one["answer"]}
        yield Ask(one["id"], one["question"], images, extra=extra, group=next(iter(one["images"]), None))


def is_right(answer: str, expected: str) -> bool:
    """Compare an answer with the right one, regardless of case, blanks and a final full stop."""
    return answer.strip().lower().rstrip(".") == expected


def read_questions(path: Path) -> list[dict[str, Any]]:
    """Return the questions of a file; raises UserError for another kind of file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{shortened(path)} cannot be read as JSON ({error}); expected test.json") from error
    for number, one in enumerate(found if isinstance(found, list) else [None]):
        missing = [name for name in _FIELDS if not isinstance(one, dict) or name not in one]
        if missing:
            raise UserError(
                f"{shortened(path)}: question {number} lacks {', '.join(missing)}; expected a list of "
                "questions as scripts/quickstart.sh writes them"
            )
    return found
