"""Which records of a source are used: the sampling_strategy of LLaVA-NeXT's data files."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import numpy as np

from llava.train.records import DataError

ALL = "all"
ALLOWED = (
    "all, first:N, end:N or random:N, where N is a number of records above 0 or a percentage from 1% to 100%"
)
_STRATEGY = re.compile(r"(first|end|random)\s*:\s*(\d{1,18})\s*(%?)", re.ASCII)


@dataclass(frozen=True)
class Selection:
    """A part of the records of a source: from its beginning, from its end, or by chance."""

    kind: str  # first, end, random
    amount: int  # of records, or per cent of them
    percent: bool

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount}{'%' * self.percent}"

    def count(self, total: int) -> int:
        """Return how many of `total` records are taken; a part of a record counts as one."""
        wanted = -(-self.amount * total // 100) if self.percent else self.amount
        return min(wanted, total)

    def places(self, total: int, order: random.Random) -> np.ndarray:
        """Return the places of the records that are taken, in the order of the source: (records,)."""
        count = self.count(total)
        if self.kind == "random":
            return np.sort(np.array(order.sample(range(total), count), dtype=np.int64))
        return np.arange(count) if self.kind == "first" else np.arange(total - count, total)


def parse_strategy(value: object, where: str) -> Selection | None:
    """Read a sampling_strategy; None for all records. where: for messages. Raises DataError."""
    text = value.strip() if isinstance(value, str) else ""
    if text == ALL:
        return None
    found = _STRATEGY.fullmatch(text)
    if found is not None:
        kind, amount, percent = found[1], int(found[2]), bool(found[3])
        if amount >= 1 and not (percent and amount > 100):
            return Selection(kind, amount, percent)
    raise DataError(f"{where}: 'sampling_strategy' is {value!r:.80}; expected {ALLOWED}")
