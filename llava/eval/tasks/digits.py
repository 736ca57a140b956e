"""Handwritten digits: the held-out questions of the quickstart, with one image, with two, and without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Report, Said, Score, Task, TaskData
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
        questions = {one["id"]: one for one in read_questions(data.path(self, "question-file"))}
        found: dict[int | str, str] = {}
        unexpected = []
        for record in answers:
            name = record.get("question_id")
            if not isinstance(name, int | str) or name not in questions:
                unexpected.append(str(name))
            else:
                found.setdefault(name, str(record.get("text", "")))
        graded = tuple(
            Graded(
                name,
                text,
                questions[name]["answer"],
                float(is_right(text, questions[name]["answer"])),
                group=next(iter(questions[name]["images"]), None),
            )
            for name, text in found.items()
        )
        kinds: dict[str, list[float]] = {}
        for one in graded:
            kinds.setdefault(questions[one.id]["kind"], []).append(one.credit or 0.0)
        rows = {kind: 100 * sum(credits) / len(credits) for kind, credits in kinds.items()}
        credits = [one.credit or 0.0 for one in graded]
        value = 100 * sum(credits) / max(len(credits), 1)
        return Report(
            scores=(Score("accuracy", "official", value, len(credits)),),
            asked=len(questions),
            answered=len(graded),
            graded=graded,
            tables={"accuracy by kind": rows},
            missing=tuple(name for name in questions if name not in found),
            unexpected=tuple(unexpected),
        )


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
