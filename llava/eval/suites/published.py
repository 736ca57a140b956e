"""What is published for the reference's models, with its source, and what others got with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

ZOO = "docs/MODEL_ZOO.md of haotian-liu/LLaVA at c121f04"


class Band(NamedTuple):
    """Values that others have measured, and where they tell so."""

    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Published:
    """A model's published scores by task. parts: what its name holds, in any order."""

    name: str
    parts: tuple[str, ...]
    scores: dict[str, float]
    source: str = ZOO


_V15 = ("vqav2", "gqa", "vizwiz", "science_qa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "seed")
# "" drops MathVista: it is published over all of its questions, the task `mathvista` has those with choices.
_V16 = ("mmmu", "", *_V15)
# A judge that is no more has scored these, so that nobody can get the same numbers again.
JUDGED = ("llava_bench", "mm_vet")
SUITES: dict[str, tuple[str, ...]] = {"v1.5": (*_V15, "llava_bench", "mm_vet")}


def _row(name: str, parts: str, tasks: tuple[str, ...], scores: str) -> Published:
    values = (float(one) for one in scores.split())
    names = (*tasks, "llava_bench", "mm_vet")
    scored = {task: value for task, value in zip(names, values, strict=True) if task}
    return Published(name, tuple(parts.split()), scored)


# The first whose parts all are in a model's name is it: those of more parts come first.
PUBLISHED = (
    _row(
        "LLaVA-1.5-7B LoRA", "1.5 7b lora", _V15,
        "79.1 63.0 47.8 68.4 58.2 86.4 1476.9 66.1 58.9 60.1 67.9 30.2",
    ),
    _row(
        "LLaVA-1.5-13B LoRA", "1.5 13b lora", _V15,
        "80.0 63.3 58.9 71.2 60.2 86.7 1541.7 68.5 61.5 61.3 69.5 38.3",
    ),
    _row(
        "LLaVA-1.5-7B", "1.5 7b", _V15,
        "78.5 62.0 50.0 66.8 58.2 85.9 1510.7 64.3 58.3 58.6 65.4 31.1",
    ),
    _row(
        "LLaVA-1.5-13B", "1.5 13b", _V15,
        "80.0 63.3 53.6 71.6 61.3 85.9 1531.3 67.7 63.6 61.6 72.5 36.1",
    ),
    _row(
        "LLaVA-1.6-Vicuna-7B", "1.6 vicuna 7b", _V16,
        "35.8 34.6 81.8 64.2 57.6 70.1 64.9 86.5 1519 67.4 60.6 70.2 81.6 43.9",
    ),
    _row(
        "LLaVA-1.6-Vicuna-13B", "1.6 vicuna 13b", _V16,
        "36.2 35.3 82.8 65.4 60.5 73.6 67.1 86.2 1575 70.0 64.4 71.9 87.3 48.4",
    ),
    _row(
        "LLaVA-1.6-Mistral-7B", "1.6 mistral 7b", _V16,
        "35.3 37.7 82.2 64.8 60.0 72.8 65.7 86.7 1498 68.7 61.2 72.2 83.2 47.3",
    ),
    _row(
        "LLaVA-1.6-Yi-34B", "1.6 34b", _V16,
        "51.1 46.5 83.7 67.1 63.8 81.8 69.5 87.7 1631 79.3 79.0 75.9 89.6 57.4",
    ),
)  # fmt: skip

_RESCORED = "the published weights, asked and scored again"
BANDS: dict[str, dict[str, Band]] = {
    "LLaVA-1.5-7B": {
        "mme": Band(1457.7, 1509.4, f"LLaVA#680, #630, #1835: trained again 1457 to 1497; {_RESCORED}: 1509"),
        "gqa": Band(61.86, 62.6, f"LLaVA#680: trained again 62.6; {_RESCORED}: 61.86"),
        "science_qa": Band(66.8, 70.8, f"LLaVA#927: {_RESCORED}: 67.87; #680: trained again 70.8"),
        "mm_vet": Band(27.8, 31.1, "LLaVA#1905: the published answers, scored by a later judge"),
    }
}


def published_of(model: str) -> Published | None:
    """Return what is published for a model of this name (or of a name in the table), else None."""
    name = model.lower()
    for one in PUBLISHED:
        if name == one.name.lower() or all(part in name for part in one.parts):
            return one
    return None


def band_of(published: Published, task: str) -> Band | None:
    """Return the values that others got with this model."""
    return BANDS.get(published.name, {}).get(task)
