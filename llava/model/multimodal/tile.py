"""How many features one tile has, and whether they are a grid."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileFeatures:
    """The features of one tile: `extra` of them, then `side` x `side` line by line (side 0: no grid)."""

    side: int
    extra: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.side**2 + self.extra
