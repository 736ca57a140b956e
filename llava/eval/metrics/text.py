"""Distances of short texts and numbers: ANLS of DocVQA, the relaxed accuracy of ChartQA."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(one: str, two: str) -> int:
    """Return the Levenshtein distance of two texts."""
    row = list(range(len(two) + 1))
    for i, left in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, right in enumerate(two, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Return the normalised similarity to the nearest answer, 0 below the threshold, as DocVQA's evaluation.

    Texts are compared in lower case with single spaces; the distance is divided by the longer raw text.
    """
    best = 0.0
    for answer in answers:
        length = max(len(prediction), len(answer))
        distance = edit_distance(_plain(prediction), _plain(answer))
        best = max(best, 1.0 - (distance / length if length else 0.0))
    return best if best >= threshold else 0.0


def relaxed_match(prediction: str, target: str, tolerance: float = 0.05) -> bool:
    """Tell whether two numbers differ by at most 5 %, or two texts are the same in lower case (ChartQA).

    A number with % is a hundredth; a target of 0 is compared as text, as in the published metric.
    """
    said, wanted = _number(prediction), _number(target)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= tolerance
    return prediction.lower() == target.lower()


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
