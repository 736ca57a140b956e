"""What captions of images earn: CIDEr-D beside the captions of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llava.eval.metrics.cider import SCALE, cider_d
from llava.eval.tasks.base import Graded, Score
from llava.eval.tasks.files import ID, TEXT, check_rows, read_object
from llava.eval.tasks.grading import Answered, mean


def read_captions(path: Path) -> dict[str, list[str]]:
    """Return what people said of each image; {} where the file has no captions. Raises UserError."""
    whole, people = read_object(path, {}), dict[str, list[str]]()
    for row in check_rows(whole.get("annotations", []), {"image_id": ID, "caption": TEXT}, path):
        people.setdefault(str(row["image_id"]), []).append(str(row["caption"]))
    return people


def graded_captions(found: Answered, people: dict[str, list[str]]) -> list[Graded]:
    """Return what the captions of images earn, of which people's are known: CIDEr-D of 10."""
    pairs = [(ask, text, people[str(ask.id)]) for ask, text in found.pairs if str(ask.id) in people]
    scores = cider_d([text for _, text, _ in pairs], [some for _, _, some in pairs])
    return [
        Graded(ask.id, text.strip(), some[0], score / SCALE)
        for (ask, text, some), score in zip(pairs, scores, strict=True)
    ]


def cider(graded: Sequence[Graded]) -> Score:
    """Return the CIDEr-D of a set as it is published: times 100, at most 1000."""
    one = mean("CIDEr-D", graded, "approximate", unit="points")
    stderr = None if one.stderr is None else SCALE * one.stderr
    return replace(one, value=SCALE * one.value, low=None, high=None, stderr=stderr)
