"""The lines of a question file of one's own: id, text, images, right answers, choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.tasks import prompts
from llava.eval.tasks.base import JsonValue, Record
from llava.eval.tasks.files import read_lines
from llava.utils import UserError, shortened

IMAGE_TOKEN = "<image>"
# What a line calls each part; the first that is there counts.
ID, TEXT = ("question_id", "id"), ("text", "question", "prompt")
IMAGES, ANSWERS = ("image", "images"), ("answer", "answers")
LETTERS = prompts.LETTERS


@dataclass(frozen=True)
class QuestionRow:
    """A line. right: the answers, letters where there are choices; group: what it shares with other lines."""

    id: str | int
    text: str
    images: tuple[str, ...]
    right: tuple[str, ...]
    choices: tuple[str, ...]
    group: str
    fields: Record
    where: str

    @property
    def prompt(self) -> str:
        """What the model is asked: the text, and its choices as SEED-Bench shows them."""
        return prompts.choice(self.text, self.choices) if self.choices else self.text

    def values(self, name: str) -> list[str]:
        """Return what the line has under a field, one or several; raises UserError where it has not."""
        if name not in self.fields:
            raise UserError(f"{self.where} has no {name!r} for --by; it has {', '.join(self.fields)}")
        value = self.fields[name]
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def read_rows(path: Path) -> list[QuestionRow]:
    """Read a question file; raises UserError that names the line and what it lacks."""
    found = read_lines(path, {})
    if not found:
        raise UserError(f'{path} holds no questions; expected JSON lines such as {{"image": .., "text": ..}}')
    return [_row(one, number, f"{path}, question {number}") for number, one in enumerate(found, start=1)]


def _row(line: Record, number: int, where: str) -> QuestionRow:
    key = _first(line, ID)
    key = number if key is None else key
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise UserError(f"{where}: the id is {shortened(repr(key), 60)}; expected a number or a text")
    text = _first(line, TEXT)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} has no text; expected the question under 'text' (or 'question')")
    images = _texts(_first(line, IMAGES), f"{where}: 'image'")
    choices = _texts(line.get("choices"), f"{where}: 'choices'")
    group = line.get("group")
    return QuestionRow(
        key,
        _without_tokens(text, len(images), where),
        images,
        _right(_first(line, ANSWERS), choices, where),
        choices,
        str(group) if group is not None else images[0] if images else str(key),
        line,
        where,
    )


def _right(value: JsonValue, choices: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the right answers; with choices their letters, given as letter, text or place."""
    known = LETTERS[: len(choices)]
    if not choices:
        return _texts(value, f"{where}: 'answer'", numbers=True)
    if len(choices) > len(LETTERS) or len(choices) < 2:
        raise UserError(f"{where} has {len(choices)} choices; expected 2 to {len(LETTERS)}")
    letters = []
    for one in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(choices):
            letters.append(known[one])
        elif isinstance(one, str) and one in choices:
            letters.append(known[list(choices).index(one)])
        elif isinstance(one, str) and len(one) == 1 and one in known:
            letters.append(one)
        else:
            raise UserError(
                f"{where}: the answer {shortened(repr(one), 60)} is none of the choices; expected a "
                "letter of "
                f"{known}, a choice's text, or its place counted from 0"
            )
    return tuple(letters)


def _without_tokens(text: str, n_images: int, where: str) -> str:
    """Return a text without image tokens, which are put in front when the model is asked."""
    n = text.count(IMAGE_TOKEN)
    if n and n != n_images:
        raise UserError(f"{where} has {n} {IMAGE_TOKEN} in its text and {n_images} images; expected as many")
    return text.replace(f"{IMAGE_TOKEN}\n", "").replace(IMAGE_TOKEN, "").strip() if n else text


def _texts(value: JsonValue, where: str, *, numbers: bool = False) -> tuple[str, ...]:
    """Return a text, or a list of texts, as texts; nothing for None."""
    parts = list(value) if isinstance(value, list) else [] if value is None else [value]
    for one in parts:
        is_number = numbers and isinstance(one, int | float) and not isinstance(one, bool)
        if not is_number and not isinstance(one, str):
            raise UserError(f"{where} is {shortened(repr(value), 80)}; expected a text, or a list of texts")
    return tuple(str(one) for one in parts)


def _first(line: Record, names: Sequence[str]) -> JsonValue:
    return next((line[name] for name in names if name in line), None)
