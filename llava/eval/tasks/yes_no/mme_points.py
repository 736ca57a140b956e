"""The points of MME: of each category the accuracy of questions and of whole images, in percent, added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from llava.eval.tasks.base import Graded, Score
from llava.eval.tasks.grading import clustered_error

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def says(text: str) -> str:
    """Read an answer as the official calculation.py: yes or no in its first four characters, else "other"."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def points(name: str, categories: Sequence[str], graded: Sequence[Graded], kinds: Sequence[str]) -> Score:
    """Return the points of these categories; kinds: the category of each answer.

    low and high count answers that are neither yes nor no as wrong and as right. stderr: images are drawn.
    """
    own = [(one, kind) for one, kind in zip(graded, kinds, strict=True) if kind in categories]
    right = [(one if one.parsed else replace(one, credit=1.0), kind) for one, kind in own]
    value, variance = _sum(own)
    return Score(
        name,
        "official",
        value,
        n=len(own),
        unit="points",
        low=value,  # "other" is wrong by the rule
        high=_sum(right)[0],
        stderr=math.sqrt(variance),
    )


def _sum(answers: Sequence[tuple[Graded, str]]) -> tuple[float, float]:
    """Return points and their variance over the categories."""
    total = variance = 0.0
    for category in dict.fromkeys(kind for _, kind in answers):
        images: dict[str, list[float]] = {}
        for one, kind in answers:
            if kind == category:
                images.setdefault(one.group or str(one.id), []).append(one.credit or 0.0)
        n = sum(map(len, images.values()))
        # the official rule takes pairs; an image with one answer counts by what is there
        each = [math.fsum(pair) / n * len(images) + float(all(pair)) for pair in images.values()]
        total += 100 * math.fsum(each) / len(each)
        variance += (100 * clustered_error(each, list(images))) ** 2
    return total, variance
