"""From question, answers and review files to the JSON of the comparison page, in the reference's form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava.eval.judges.replies import PAIR, value_of
from llava.eval.run.answers import read_answers
from llava.eval.tasks.base import JsonValue, Record
from llava.eval.tasks.files import ID, TEXT, Fields, check_row, read_lines
from llava.eval.tasks.grading import some_of
from llava.utils import UserError, shortened

_SCORES = re.compile(r"[\d.]+[,\s]+[\d.]+\s*")
_ASSISTANT = re.compile(r"(?<!\*)Assistant [12](?!\*)")
Rows = dict[str, Record]  # the id of a question, as text -> its line


@dataclass(frozen=True)
class Side:
    """The answers of one model. name: on the page; complaints: what is amiss with its file."""

    name: str
    rows: Rows
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compared:
    """What the page shows: `questions` and `models` of data.json. complaints: what is amiss with files."""

    questions: list[Record]
    models: list[str]
    complaints: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, JsonValue]:
        """Return the value of data.json."""
        return {"questions": self.questions, "models": list(self.models)}


def read_side(path: Path, asked: Sequence[str], name: str | None = None) -> Side:
    """Read an answers file, of ours, of the reference or of another model.

    name: on the page, by default the `model_id` of its records, else the file's name. asked: the ids of the
    questions. Raises UserError for a file without answers to them.
    """
    found = read_answers(path)
    rows, repeated = _by_question(found.records, path, {"question_id": ID, "text": TEXT})
    models = {str(one["model_id"]) for one in rows.values() if one.get("model_id")}
    known = [key for key in rows if key in set(asked)]
    if not known:
        raise UserError(
            f"{path}: none of its {len(rows)} answers is to one of the {len(asked)} questions; expected the "
            "answers to this question file"
        )
    amiss = {
        "has no answer to": [key for key in asked if key not in rows],
        "answers what is not asked:": [key for key in rows if key not in set(asked)],
        "answers more than once (the last one is shown):": repeated,
        "is broken:": list(found.broken),
    }
    told = tuple(f"{path} {what} {some_of(ids)} ({len(ids)} in all)" for what, ids in amiss.items() if ids)
    return Side(name or (models.pop() if len(models) == 1 else path.stem), rows, told)


def compared(
    question_file: Path, answers: Sequence[Path], reviews: Sequence[Path], names: Sequence[str] = ()
) -> Compared:
    """Put the answers of several models beside each question.

    reviews: of the second and further answers, in their order, each compared with the first ones, as the
    review programs write them. names: of the models. Raises UserError for files that cannot be used.
    """
    if not answers:
        raise UserError("no file of answers is named; name at least one with --answers")
    if len(reviews) > max(len(answers) - 1, 0):
        raise UserError(
            f"--reviews names {len(reviews)} files, and --answers {len(answers)}; expected a file of reviews "
            "for the second and each further file of answers at most"
        )
    if names and len(names) != len(answers):
        raise UserError(f"--names has {len(names)} names for {len(answers)} files of answers; name each")
    fields = {"question_id": ID, "text": TEXT}
    asked, twice = _by_question(read_lines(question_file, {}), question_file, fields)
    given: Sequence[str | None] = names or [None] * len(answers)
    sides = [read_side(path, list(asked), name) for path, name in zip(answers, given, strict=True)]
    sides = _told_apart(sides)
    complaints = [f"{question_file} asks more than once: {some_of(twice)}"] if twice else []
    complaints += [one for side in sides for one in side.complaints]
    judged: dict[str, Rows] = {}
    for path, side in zip(reviews, sides[1:], strict=False):
        judged[side.name], _ = _by_question(read_lines(path, {}), path, {"question_id": ID})
    questions = [_question(row, sides, judged) for row in asked.values()]
    models = [side.name for side in sides[1:]] or [sides[0].name]
    return Compared(questions, models, complaints)


def _by_question(found: Sequence[Record], path: Path, fields: Fields) -> tuple[Rows, list[str]]:
    """Return records by question, the last one of each, and the ids of those that come again."""
    rows: Rows = {}
    repeated: list[str] = []
    for number, row in enumerate(found, start=1):
        key = str(check_row(row, fields, f"{path}, record {number}")["question_id"])
        if key in rows:
            repeated.append(key)
        rows[key] = row
    if not rows:
        raise UserError(f"{path} is empty; expected one JSON object a line")
    return rows, repeated


def _told_apart(sides: Sequence[Side]) -> list[Side]:
    """Return the sides, those with one name numbered."""
    names = [one.name for one in sides]
    return [
        one
        if names.count(one.name) == 1
        else Side(f"{one.name} ({names[:place].count(one.name) + 1})", one.rows, one.complaints)
        for place, one in enumerate(sides)
    ]


def _question(row: Record, sides: Sequence[Side], judged: dict[str, Rows]) -> Record:
    """Return a question with its answers, reviews and scores; the fields are the reference's, and `image`."""
    key = str(row["question_id"])
    told: Record = {
        "id": row["question_id"],
        "category": str(row.get("category", "")),
        "question": row["text"],
        "answers": {one.name: one.rows[key]["text"] for one in sides if key in one.rows},
        "evaluations": {
            name: evaluation(str(of[key].get("content", ""))) for name, of in judged.items() if key in of
        },
        "scores": {name: value_of(of[key], PAIR) for name, of in judged.items() if key in of},
    }
    return told | {"image": shortened(str(row["image"]), 1000)} if row.get("image") else told


def evaluation(review: str) -> str:
    """Return a review without the line of its scores; "Assistant 1" and "Assistant 2" are marked as bold."""
    first, _, rest = review.strip().partition("\n")
    text = rest if _SCORES.fullmatch(first) else review.strip()
    return _ASSISTANT.sub(lambda found: f"**{found[0]}**", text.strip())


def read_jsonl(path: str, key: str | None = None) -> list[Record] | dict[JsonValue, Record]:
    """Return the objects of a file of JSON lines: a list, or with a key a dictionary by that field."""
    rows = read_lines(Path(path).expanduser(), {} if key is None else {key: (int, str)})
    return rows if key is None else {row[key]: row for row in sorted(rows, key=lambda one: str(one[key]))}
