"""KV caches of several rows: plain full-length layers that grow in place, rows aligned at their right end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from llava.utils import UserError

# Keys and values (B, heads, length, head size) of each layer.
Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]

# Free columns of a layer that has to grow, and the share of its length that they are at least.
FREE_COLUMNS = 64
FREE_SHARE = 0.25


class GrowingLayer(DynamicLayer):
    """A full-length layer with free columns at its end, so that a step copies only what is new.

    Also for models with a sliding window, whose masks bring the window.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stored: tuple[torch.Tensor, torch.Tensor] | None = None  # (B, heads, columns, head size)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values (B, heads, new, head size); return all of them."""
        filled = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = filled + key_states.shape[-2]
        if self.stored is None or self.stored[0].shape[-2] < end:
            free = max(FREE_COLUMNS, int(end * FREE_SHARE)) if filled else FREE_COLUMNS
            self.stored = (
                self._grown(self.keys, key_states, filled, end + free),
                self._grown(self.values, value_states, filled, end + free),
            )
        self.stored[0][:, :, filled:end] = key_states
        self.stored[1][:, :, filled:end] = value_states
        self.cut(end)
        return self.keys, self.values

    @staticmethod
    def _grown(old: torch.Tensor, like: torch.Tensor, filled: int, columns: int) -> torch.Tensor:
        grown = like.new_empty((*like.shape[:2], columns, like.shape[3]))
        if filled:
            grown[:, :, :filled] = old
        return grown

    def cut(self, length: int) -> None:
        """Let the first `length` columns count."""
        if self.stored is not None:
            self.keys, self.values = self.stored[0][:, :, :length], self.stored[1][:, :, :length]

    def fill(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], width: int) -> None:
        """Take keys and values (heads, length, head size) of one row each, zeros in front of the shorter."""
        first = max(parts, key=lambda one: one[0].shape[1])
        self.lazy_initialization(*first)
        shapes = [(len(parts), one.shape[0], width + FREE_COLUMNS, one.shape[2]) for one in first]
        self.stored = (first[0].new_zeros(shapes[0]), first[1].new_zeros(shapes[1]))
        for row, part in enumerate(parts):
            for whole, one in zip(self.stored, part, strict=True):
                whole[row, :, width - one.shape[1] : width] = one
        self.cut(width)


class Columns(NamedTuple):
    """A part of one row of a cache: its columns from `start` to `end`."""

    layers: Layers
    row: int
    start: int
    end: int


def refuse_states(config: PreTrainedConfig) -> None:
    """Raise UserError for an LLM whose layers keep a state instead of keys and values.

    A state (linear attention, convolutions) belongs to all positions before it: rows cannot be cut or joined.
    """
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    if any("LinearAttention" in kind for kind in kinds):
        raise UserError(
            f"{config.model_type} keeps a state of the text instead of keys and values in some layers, which "
            "answers that run together cannot share; ask it with model.generate()."
        )


def new_cache() -> Cache:
    """Return an empty cache."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def layers_of(cache: Cache) -> Layers:
    """Return keys and values (B, heads, length, head size) of each layer of a cache."""
    return [(one.keys, one.values) for one in cache.layers]


def width_of(cache: Cache) -> int:
    """Return how many columns a cache has."""
    return cache.get_seq_length()


def rows_of(cache: Cache) -> int:
    """Return how many rows a cache has."""
    return cache.layers[0].keys.shape[0]


def last_columns(cache: Cache, row: int, count: int) -> Columns:
    """Return the last `count` columns of a row."""
    width = width_of(cache)
    return Columns(layers_of(cache), row, width - count, width)


def stack(parts: Sequence[Columns]) -> Cache:
    """Return a cache with a row for each part, aligned at the right; some part must have columns."""
    width = max(one.end - one.start for one in parts)
    model = next(one.layers for one in parts if one.end > one.start)
    layers = []
    for number, like in enumerate(model):
        found = []
        for one in parts:
            if one.end == one.start:
                found.append((like[0][0, :, :0], like[1][0, :, :0]))
                continue
            keys, values = one.layers[number]
            found.append((keys[one.row, :, one.start : one.end], values[one.row, :, one.start : one.end]))
        layer = GrowingLayer()
        layer.fill(found, width)
        layers.append(layer)
    return Cache(layers=layers)


def view_columns(part: Columns) -> Layers:
    """Return a part as keys and values (1, heads, length, head size), without copying it."""
    place = slice(part.row, part.row + 1), slice(None), slice(part.start, part.end)
    return [(keys[place], values[place]) for keys, values in part.layers]


def copy_columns(part: Columns) -> Layers:
    """Return a copy of a part as a cache of one row (1, heads, length, head size)."""
    return [(keys.clone(), values.clone()) for keys, values in view_columns(part)]


def bytes_of(layers: Layers) -> int:
    """Count the bytes of keys and values."""
    return sum(one.numel() * one.element_size() for pair in layers for one in pair)


def left_mask(lengths: Sequence[int], width: int, device: torch.device) -> torch.Tensor | None:
    """Return the mask (B, width) of rows aligned at the right, None when all are as long as the cache."""
    if all(one == width for one in lengths):
        return None
    starts = width - torch.tensor(lengths, device=device)  # (B,)
    return (torch.arange(width, device=device)[None] >= starts[:, None]).long()
