"""How answers are read where the rule is a few lines: yes or no, letters, numbers, edit distance."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llava.eval.tasks.prompts import LETTERS

_YES = re.compile(r"\byes\b", re.IGNORECASE)
_NO = re.compile(r"\b(no|not)\b", re.IGNORECASE)
# "A", "(A)", "A.", "A: a dog", "The answer is A."; a lone "A dog" is an article
_LETTER_FIRST = re.compile(r"^[(\[]?([A-Z])(?:[)\].:,、．。]|\s*$)")
_LETTER_TOLD = re.compile(
    r"(?:answer|option|choice|答案|选项)(?:\s+is|是|为)?\s*[::]?\s*[(\[]?([A-Z])(?![A-Za-z])", re.IGNORECASE
)


def pope_says(text: str) -> str:
    """Read an answer to POPE by its official rule, which is the reference's: all that is not "no" is "yes".

    The text before the first period counts; "No", "no" and "not" are "no" as words of their own, "NO" is not.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def is_yes_or_no(text: str) -> bool:
    """Tell whether an answer holds yes or no at all."""
    return bool(_YES.search(text) or _NO.search(text))


def letter_of(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice that an answer names, None where none or several can be meant.

    A letter in front, or behind "answer is"; else the text of one choice and of no other. Nothing is guessed.
    """
    known = LETTERS[: len(choices)]
    said = text.strip()
    for pattern in (_LETTER_FIRST, _LETTER_TOLD):
        if (found := pattern.search(said)) and found[1].upper() in known:
            return found[1].upper()
    plain = said.rstrip(".。").casefold()
    same = [
        letter
        for letter, choice in zip(known, choices, strict=False)
        if choice.strip().rstrip(".。").casefold() == plain
    ]
    if len(same) == 1:
        return same[0]
    named = [letter for letter, choice in zip(known, choices, strict=False) if _names(plain, choice)]
    return named[0] if len(named) == 1 else None


def _names(said: str, choice: str) -> bool:
    """Tell whether a text holds a choice as words of its own."""
    wanted = re.escape(choice.strip().rstrip(".。").casefold())
    return bool(wanted) and re.search(rf"(?<!\w){wanted}(?!\w)", said) is not None


def yes_or_no(text: str) -> str | None:
    """Return "yes" or "no": the one in front, else the only one in the text; None for both or neither."""
    start = text.strip().lower()
    for word in ("yes", "no"):
        if re.match(rf"{word}\b", start):
            return word
    found = {word for word in ("yes", "no") if re.search(rf"\b{word}\b", start)}
    return found.pop() if len(found) == 1 else None


def holds(text: str, wanted: str) -> bool:
    """Tell whether an answer holds an expected text as words of its own, whatever their case."""
    return _names(text.casefold(), wanted)


def same_number(text: str, wanted: str) -> bool:
    """Tell whether two texts are the same number to two decimals; commas within numbers are passed over."""
    try:
        return round(float(text.strip().rstrip(".").replace(",", "")), 2) == round(
            float(wanted.replace(",", "")), 2
        )
    except ValueError:
        return False
