"""What a run asks: a model, here or behind a server, that answers questions in any order."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from llava.eval.tasks.base import Ask, JsonValue

# shortuuid's alphabet: without letters and digits that look alike.
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ID_LENGTH = 22


@dataclass(frozen=True)
class Outcome:
    """What became of a question: its answer and why it ended, or what kept it from being answered."""

    index: int
    text: str = ""
    finish_reason: str = ""
    error: str | None = None


class Asker(Protocol):
    """A model that can be asked. Its settings belong to it, so that all its answers are of one kind."""

    @property
    def model_id(self) -> str:
        """What records call the model."""
        ...

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """What the answers depend on beside the question: weights, template, sampling."""
        ...

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """What else a result tells: paths, device, batch size, versions."""
        ...

    def render(self, ask: Ask) -> str:
        """Return the prompt as the model gets it."""
        ...

    def answer(self, asks: Mapping[int, Ask]) -> Iterator[Outcome]:
        """Yield what becomes of each question, in any order, as it is known."""
        ...


def answer_id() -> str:
    """Return a new id of an answer, as shortuuid makes them; the random numbers of a run stay as they are."""
    number, digits = uuid.uuid4().int, ""
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits.rjust(_ID_LENGTH, _ALPHABET[0])
