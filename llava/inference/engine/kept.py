"""What earlier prompts leave for later ones: KV caches and image features under one budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from llava.inference.decoder import Key
from llava.inference.engine.kv import Columns, Layers, bytes_of


@dataclass
class Prefix:
    """The KV cache of a dialog: its keys, how many positions are filled after each of them, its layers."""

    keys: list[Key]
    ends: list[int]
    layers: Layers  # (1, heads, length, head size)


@dataclass(frozen=True)
class Found:
    """How much of a prompt is there already: so many positions of a kept dialog."""

    prefix: Prefix | None = None
    n_positions: int = 0

    def columns(self, count: int) -> Columns | None:
        """Return the first `count` columns; None when there are none."""
        return Columns(self.prefix.layers, 0, 0, count) if self.prefix is not None and count > 0 else None


class Kept:
    """A store with a byte budget; what was used longest ago goes first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.n_bytes = 0
        self.prefix_hits = self.prefix_misses = self.image_hits = self.image_misses = 0
        self._entries: OrderedDict[Hashable, tuple[Prefix | torch.Tensor, int]] = OrderedDict()
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def forget(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self.n_bytes = 0

    def find(self, keys: Sequence[Key]) -> Found:
        """Return the longest beginning of a prompt that is kept, at least one key less than the prompt."""
        wanted = list(keys[:-1])
        best, best_id, found = 0, None, Found()
        for name, (entry, _) in self._entries.items():
            if isinstance(entry, Prefix) and (shared := common_length(entry.keys, wanted, best)) > best:
                best, best_id = shared, name
                found = Found(entry, entry.ends[shared - 1])
        if best_id is not None:
            self._entries.move_to_end(best_id)
        return found

    def count(self, found: Found) -> None:
        """Count a prompt that is begun with what was found of it."""
        self.prefix_hits += found.prefix is not None
        self.prefix_misses += found.prefix is None

    def put(self, keys: list[Key], ends: list[int], layers: Layers) -> None:
        """Keep the cache of a dialog; one that is the beginning of another is not kept beside it."""
        for name, (entry, size) in list(self._entries.items()):
            if not isinstance(entry, Prefix):
                continue
            shared = common_length(entry.keys, keys, 0)
            if shared == len(keys):
                self._entries.move_to_end(name)
                return
            if shared == len(entry.keys):
                del self._entries[name]
                self.n_bytes -= size
        self._number += 1
        self._add(self._number, Prefix(keys, ends, layers), bytes_of(layers))

    def fits(self, n_bytes: int) -> bool:
        """Tell whether something of this size would be kept."""
        return n_bytes <= self.budget

    def features(self, digest: bytes) -> torch.Tensor | None:
        """Return the features (length, C) of an image, None when they are not kept."""
        entry = self._entries.get(digest)
        if entry is None:
            self.image_misses += 1
            return None
        self.image_hits += 1
        self._entries.move_to_end(digest)
        assert isinstance(entry[0], torch.Tensor)
        return entry[0]

    def put_features(self, digest: bytes, features: torch.Tensor) -> None:
        """Keep the features (length, C) of an image."""
        if digest not in self._entries:
            self._add(digest, features.clone(), features.numel() * features.element_size())

    def _add(self, name: Hashable, entry: Prefix | torch.Tensor, size: int) -> None:
        if not self.fits(size):
            return
        while self.n_bytes + size > self.budget:
            _, (_, freed) = self._entries.popitem(last=False)
            self.n_bytes -= freed
        self._entries[name] = entry, size
        self.n_bytes += size


def common_length(one: Sequence[Key], other: Sequence[Key], at_least: int) -> int:
    """Return how many keys two lists share at their beginning; 0 when they are not more than `at_least`."""
    high = min(len(one), len(other))
    if high <= at_least or one[: at_least + 1] != other[: at_least + 1]:
        return 0
    low = at_least + 1
    while low < high:  # equal up to low, and not known behind high
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
