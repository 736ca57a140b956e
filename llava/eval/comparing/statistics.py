"""Two answers to the same questions: the difference, how sure it is, and McNemar's test; numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 2023


@dataclass(frozen=True)
class Paired:
    """The difference of the second to the first, in points of 100.

    low, high: the middle 95 % of a bootstrap over groups. stderr: over groups. gained, lost: how many credits
    the second has more or less. mcnemar: p of the exact test; None where credits are not all 0 or 1.
    """

    n: int
    groups: int
    first: float
    second: float
    difference: float
    stderr: float
    low: float
    high: float
    gained: int
    lost: int
    mcnemar: float | None


def compare_credits(
    first: Sequence[float], second: Sequence[float], groups: Sequence[object] | None = None
) -> Paired:
    """Compare credits between 0 and 1 of the same questions; questions of one group are drawn together."""
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)  # (n,)
    n = len(one)
    names = list(range(n)) if groups is None else list(groups)
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    member = np.array([place[name] for name in names])  # (n,)
    change = two - one
    sums = np.bincount(member, change)  # (groups,)
    sizes = np.bincount(member).astype(float)
    low, high = bootstrap(sums, sizes)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    binary = bool(np.isin(np.concatenate([one, two]), (0.0, 1.0)).all())
    return Paired(
        n=n,
        groups=len(place),
        first=100 * float(one.mean()),
        second=100 * float(two.mean()),
        difference=100 * float(change.mean()),
        stderr=100 * clustered_error(sums, sizes),
        low=100 * low,
        high=100 * high,
        gained=gained,
        lost=lost,
        mcnemar=mcnemar(gained, lost) if binary else None,
    )


def clustered_error(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Return the standard error of the mean of all questions from sums and sizes (groups,) of groups."""
    count = len(sums)
    if count < 2:
        return 0.0
    residuals = sums - sizes * (sums.sum() / sizes.sum())
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / sizes.sum())


def bootstrap(sums: np.ndarray, sizes: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the middle 95 % of the mean over resampled groups; the same for the same numbers."""
    generator = np.random.default_rng(SEED)
    means = np.empty(resamples)
    for number in range(resamples):
        picks = generator.integers(0, len(sums), len(sums))
        means[number] = sums[picks].sum() / sizes[picks].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p of the exact test: how often chance alone would split the flips so unevenly."""
    n, fewer = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        for k in range(fewer + 1)
    ]
    largest = max(logs)
    tail = math.exp(largest) * math.fsum(math.exp(one - largest) for one in logs)
    return min(1.0, 2 * tail)
