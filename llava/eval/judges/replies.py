"""Reading what a judge replied: two scores on the first line, or one between 0 and 1. Nothing is guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llava.utils import shortened

Value = float | list[float]


class UnreadableReply(ValueError):
    """A reply without the scores that were asked for; the message says what it holds instead."""


@dataclass(frozen=True)
class Scale:
    """How a score is asked for: the field of the line it is written to, and how it is read."""

    field: str
    read: Callable[[str], Value]


def parse_score(review: str) -> list[float]:
    """Return the two numbers of a review's first line as the reference reads them; [-1, -1] if it has none.

    Kept for callers of the reference's scripts: here replies are read with `read_pair`, which also takes
    ", " between the numbers and refuses what lies outside of 0 to 10.
    """
    words = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        scores = [float(one) for one in words]
    except ValueError:
        scores = []
    if len(scores) != 2:
        print(f"no two scores on the first line of the review: {shortened(review, 200)!r}")
        return [-1, -1]
    return scores


def read_pair(reply: str) -> Value:
    """Return the two scores, each from 0 to 10, of a reply's first line."""
    words = re.split(r"[\s,]+", _first_line(reply))
    if len(words) != 2:
        raise UnreadableReply(f"the first line is {_quoted(reply)}; expected two scores")
    return [_within(word, 10, reply) for word in words]


def read_fraction(reply: str) -> Value:
    """Return the score from 0 to 1 that a reply's first line consists of."""
    return _within(_first_line(reply).rstrip("."), 1, reply)


def _within(word: str, most: int, reply: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise UnreadableReply(f"the first line is {_quoted(reply)}; expected a number from 0 to {most}")
    if not 0 <= value <= most:
        raise UnreadableReply(f"the score {word} is out of range; expected 0 to {most}")
    return value


def _first_line(reply: str) -> str:
    return reply.strip().split("\n")[0].strip()


def _quoted(reply: str) -> str:
    return repr(shortened(_first_line(reply), 80))


PAIR = Scale("tuple", read_pair)
FRACTION = Scale("score", read_fraction)


def value_of(line: dict[str, Any], scale: Scale) -> Value | None:
    """Return the score that a kept line holds; None where it holds none, as for [-1, -1] of the reference."""
    value = line.get(scale.field, line.get("score"))
    numbers = value if isinstance(value, list) else [value]
    right = all(isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in numbers)
    return value if right and value != [] else None
