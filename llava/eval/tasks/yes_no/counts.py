"""Right and wrong answers of yes and no, and the rates that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llava.eval.tasks.base import Score


@dataclass
class Counts:
    """Counts of answers; positive is "yes". unsure: (said yes, is yes) of answers that could not be read."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    unsure: list[tuple[bool, bool]] = field(default_factory=list)

    def add(self, said: bool, truth: bool, *, sure: bool = True) -> None:
        """Count an answer."""
        name = ("t" if said == truth else "f") + ("p" if said else "n")
        setattr(self, name, getattr(self, name) + 1)
        if not sure:
            self.unsure.append((said, truth))

    def if_unsure(self, *, right: bool) -> Counts:
        """Return the counts as they were if all answers that could not be read were right, or wrong."""
        other = replace(self, unsure=[])
        for said, truth in self.unsure:
            name = ("t" if said == truth else "f") + ("p" if said else "n")
            setattr(other, name, getattr(other, name) - 1)
            other.add(truth if right else not truth, truth)
        return other

    @property
    def n(self) -> int:
        """How many answers there are."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def precision(self) -> float:
        """The share of "yes" that is right; 0 where there is none."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0

    @property
    def recall(self) -> float:
        """The share of what is there that was found; 0 where nothing is there."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where both are."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    def table(self) -> dict[str, float]:
        """Return the rates in percent, and the counts."""
        n = max(self.n, 1)
        rates = {
            "F1": self.f1,
            "accuracy": (self.tp + self.tn) / n,
            "precision": self.precision,
            "recall": self.recall,
            "said yes": (self.tp + self.fp) / n,
        }
        return {name: 100 * value for name, value in rates.items()} | {"questions": float(self.n)}


def mean_f1(parts: Sequence[Counts]) -> Score:
    """Return the mean F1 of the parts of a benchmark in percent, with its bounds."""
    n = sum(one.n for one in parts)

    def mean(some: Sequence[Counts]) -> float:
        return 100 * sum(one.f1 for one in some) / len(some)

    low, high = (mean([one.if_unsure(right=right) for one in parts]) for right in (False, True))
    return Score("F1, mean of the categories", "official", mean(parts), n, low=low, high=high)
