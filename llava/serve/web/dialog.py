"""The dialog of a page: questions with their images, answers, failures; how it is stored and shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

MODES = ("Crop", "Resize", "Pad", "Default")
DEFAULT_MODE = "Default"
# What a browser sends back is no more to be trusted than any other request.
MAX_TURNS = 200
MAX_CHARACTERS = 200_000
MAX_IMAGES = 16  # of one question
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_VERSION = 1
_NOT_WAITED_FOR = (
    "the page was loaded again, or lost its server, before the answer was whole; Retry asks again"
)


class Failure(NamedTuple):
    """Why there is no answer, or not all of one. request_id: "" where no request failed."""

    message: str
    code: str
    request_id: str

    def markdown(self, answer: str) -> str:
        """Return what the page shows, below what there is of the answer."""
        words = re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(self.message.split()))
        title = "The answer broke off" if answer else "No answer"
        name = f" · request `{self.request_id}`" if self.request_id else ""
        told = f"⚠️ **{title}:** {words}\n\n`{self.code}`{name}"
        closed = "\n```" if answer.count("```") % 2 else ""
        return f"{answer}{closed}\n\n{told}" if answer else told


@dataclass(frozen=True)
class PageTurn:
    """A question and what became of it. images: ids of an ImageStore. answer: None before there is one."""

    text: str
    images: tuple[str, ...] = ()
    mode: str = DEFAULT_MODE
    answer: str | None = None
    failure: Failure | None = None


class Line(NamedTuple):
    """A message of the chat window: which turn it belongs to, and what it shows."""

    turn: int
    kind: str  # "image", "question" or "answer"
    content: str  # the id of an image, or a text


@dataclass(frozen=True)
class PageDialog:
    """All turns, the oldest first. model: the one that answered last."""

    turns: tuple[PageTurn, ...] = ()
    model: str = ""

    # ---- what is asked ----

    def ask(self, text: str, images: Sequence[str], mode: str) -> PageDialog:
        """Return the dialog with a question more."""
        return replace(self, turns=(*self.turns, PageTurn(text, tuple(images), mode)))

    def ask_again(self, index: int, text: str | None = None) -> PageDialog:
        """Return the dialog as it was when a question was asked, with another text if one is given."""
        asked = self.turns[index]
        again = PageTurn(asked.text if text is None else text, asked.images, asked.mode)
        return replace(self, turns=(*self.turns[:index], again))

    def until(self, index: int) -> PageDialog:
        """Return the dialog without the turns from `index` on."""
        return replace(self, turns=self.turns[:index])

    def with_answer(self, answer: str | None, failure: Failure | None = None) -> PageDialog:
        """Return the dialog with an answer, or a failure, to its last question."""
        last = replace(self.turns[-1], answer=answer, failure=failure)
        return replace(self, turns=(*self.turns[:-1], last))

    def reopened(self) -> PageDialog:
        """Return the dialog as an opened page shows it: an answer on its way does not come any more."""
        if not self.turns or self.turns[-1].answer is not None or self.turns[-1].failure is not None:
            return self
        return self.with_answer(None, Failure(_NOT_WAITED_FOR, "page_reloaded", ""))

    def prompt_turns(self) -> list[PageTurn]:
        """List the turns that a model is to read: questions that were never answered are not among them."""
        earlier = [one for one in self.turns[:-1] if one.answer]
        return [*earlier, *self.turns[-1:]]

    # ---- what is shown ----

    def lines(self) -> list[Line]:
        """List the messages of the chat window."""
        found = []
        for index, turn in enumerate(self.turns):
            found += [Line(index, "image", one) for one in turn.images]
            if turn.text or not turn.images:
                found.append(Line(index, "question", turn.text))
            if turn.failure is not None:
                found.append(Line(index, "answer", turn.failure.markdown(turn.answer or "")))
            elif turn.answer is not None:
                found.append(Line(index, "answer", turn.answer))
        return found

    def turn_at(self, message: object) -> int | None:
        """Return the turn that a message of the chat window belongs to; None for one that is not there.

        message: the index in an event of the window, or a list that begins with it.
        """
        index = message[0] if isinstance(message, (list, tuple)) and message else message
        lines = self.lines()
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(lines):
            return None
        return lines[index].turn

    # ---- what is stored ----

    def to_json(self) -> dict[str, Any]:
        """Return what a browser keeps: texts, and the ids of images."""
        turns = [
            {
                "text": one.text,
                "images": list(one.images),
                "mode": one.mode,
                "answer": one.answer,
                "failure": None if one.failure is None else list(one.failure),
            }
            for one in self.turns
        ]
        return {"version": _VERSION, "model": self.model, "turns": turns}

    @classmethod
    def of_json(cls, stored: object) -> PageDialog:
        """Read what `to_json` wrote; an empty dialog for anything else."""
        try:
            return _read(stored)
        except (ValueError, TypeError, KeyError):
            return cls()


@dataclass
class _Budget:
    """Counts characters down. Raises ValueError when they are used up."""

    left: int = field(default=MAX_CHARACTERS)

    def text(self, value: object) -> str:
        if not isinstance(value, str) or len(value) > self.left:
            raise ValueError("no text, or too long")
        self.left -= len(value)
        return value


def _read(stored: object) -> PageDialog:
    if not isinstance(stored, Mapping) or stored["version"] != _VERSION:
        raise ValueError("another version")
    turns = stored["turns"]
    if not isinstance(turns, list) or len(turns) > MAX_TURNS:
        raise ValueError("no list of turns")
    budget = _Budget()
    return PageDialog(tuple(_read_turn(one, budget) for one in turns), budget.text(stored["model"]))


def _read_turn(stored: Mapping[str, Any], budget: _Budget) -> PageTurn:
    images, mode, answer, failure = (stored[one] for one in ("images", "mode", "answer", "failure"))
    if not isinstance(images, list) or len(images) > MAX_IMAGES or mode not in MODES:
        raise ValueError("no list of images, or an unknown mode")
    if not all(isinstance(one, str) and _IMAGE_ID.fullmatch(one) for one in images):
        raise ValueError("an image's id is none")
    told = None
    if failure is not None:
        message, code, request_id = (budget.text(one) for one in failure)
        told = Failure(message, code, request_id)
    said = None if answer is None else budget.text(answer)
    return PageTurn(budget.text(stored["text"]), tuple(images), mode, said, told)
