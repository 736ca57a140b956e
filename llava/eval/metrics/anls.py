"""ANLS, the rule of DocVQA, InfoVQA and ST-VQA: how near an answer is to an accepted one by letters."""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLD = 0.5


def edit_distance(one: str, other: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and replacements of one character."""
    if len(one) < len(other):
        one, other = other, one
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        corner, row[0] = row[0], number
        for place, wanted in enumerate(other, start=1):
            step = corner if letter == wanted else 1 + min(corner, row[place], row[place - 1])
            corner, row[place] = row[place], step
    return row[-1]


def similarity(one: str, other: str) -> float:
    """Return 1 - distance / length of the longer text; 1 for two empty texts."""
    longer = max(len(one), len(other))
    return 1.0 if not longer else (longer - edit_distance(one, other)) / longer


def anls_answer(text: str) -> str:
    """Normalise an answer: lower case, one space between words."""
    return " ".join(text.lower().split())


def anls(prediction: str, answers: Sequence[str], threshold: float = THRESHOLD) -> float:
    """Return the similarity to the nearest answer; 0 below the threshold, which itself counts.

    So does the official script (evaluate.py of DocVQA); the paper leaves the threshold itself out. Raises
    ValueError where no answer is given.
    """
    if not answers:
        raise ValueError("no accepted answer is given; expected at least one")
    said = anls_answer(prediction)
    best = max(similarity(said, anls_answer(one)) for one in answers)
    return best if best >= threshold else 0.0
