"""Relaxed accuracy, the rule of ChartQA: numbers may be 5 % off, all else has to be equal but for case."""

from __future__ import annotations

import math
from collections.abc import Sequence

TOLERANCE = 0.05


def relaxed_match(prediction: str, answer: str, tolerance: float = TOLERANCE) -> bool:
    """Tell whether an answer counts. "5%" is 0.05; to an answer of 0 the words are compared."""
    said, wanted = number_of(prediction), number_of(answer)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= tolerance
    return prediction.strip().lower() == answer.strip().lower()


def relaxed_accuracy(prediction: str, answers: Sequence[str], tolerance: float = TOLERANCE) -> float:
    """Return 1.0 if one of the answers is met, else 0.0. Raises ValueError where none is given."""
    if not answers:
        raise ValueError("no accepted answer is given; expected at least one")
    return float(any(relaxed_match(prediction, one, tolerance) for one in answers))


def number_of(text: str) -> float | None:
    """Return the number that a text is, "5%" as 0.05; None for anything else."""
    text = text.strip()
    share = text.endswith("%")
    try:
        value = float(text.rstrip("%")) / (100 if share else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
