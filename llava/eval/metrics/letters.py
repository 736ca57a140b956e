"""The letter of a choice as the reference reads it in an answer to ScienceQA; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence

FAILED = "FAILED"
_TOLD = re.compile(r"The answer is ([A-Z]).")


def told_letter(text: str) -> str:
    """Return the letter of the one "The answer is X." of a text, else FAILED; X may be no option."""
    found = _TOLD.findall(text)
    return found[0] if len(found) == 1 else FAILED


def read_letter(text: str, options: Sequence[str]) -> str:
    """Return the letter that is the whole answer or stands before ". ", else the one that it tells."""
    if text in options:
        return text
    if len(text) >= 3 and text[0] in options and text[1:3] == ". ":
        return text[0]
    return told_letter(text)


def choice_index(letter: str, choices: Sequence[object], options: Sequence[str]) -> int:
    """Return the place of a letter among the options of a question, -1 where it is none of them."""
    known = list(options[: len(choices)])
    return known.index(letter) if letter in known else -1
