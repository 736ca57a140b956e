"""The answer that runs alone: its tokens by a compiled step, on a cache of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import Cache

from llava.inference.compiled import CompiledStep
from llava.inference.engine.kv import GrowingLayer, last_columns, view_columns
from llava.inference.engine.row import Row
from llava.inference.model_inputs import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions of the cache (the model's context if that is shorter): an image of many tiles and a long answer.
POSITIONS = 4096


class Alone:
    """Decodes a row while no other runs, compiled; used by the engine's thread alone.

    The cache has one size from the start, so that nothing is compiled while clients wait: a row that has
    outgrown it, like rows that run together, is not for this step. backend: torch.compile's; None leaves the
    step uncompiled. Raises UserError for a model or device that cannot be compiled.
    """

    def __init__(
        self, model: PreTrainedModel, *, backend: str | None = "inductor", positions: int = POSITIONS
    ) -> None:
        self._step = CompiledStep(model, backend=backend, smallest_cache=positions)
        self._cache: Cache | None = None  # of the row that it has: the filled columns of the step's cache

    def warm_up(self) -> None:
        """Compile. Raises UserError where that does not work.

        CUDA graphs are recorded by the second compiled step and replayed from the third on.
        """
        with torch.inference_mode():
            for position in range(4):
                self._step.run({"input_ids": self._ids(0)}, position)

    def takes(self, rows: Sequence[Row]) -> bool:
        """Tell whether rows are one alone that has room for its next token."""
        return len(rows) == 1 and rows[0].length < self._step.size

    def feed(self, row: Row) -> torch.Tensor:
        """Feed the last token of a row; return the logits (1, vocab) after it."""
        with torch.inference_mode():
            if self._cache is None or row.cache is not self._cache:
                self._take(row)
            assert self._cache is not None
            logits, _ = self._step.run({"input_ids": self._ids(row.new_ids[-1])}, row.length)
            for layer in self._cache.layers:
                layer.cut(row.length + 1)
        return logits

    def _take(self, row: Row) -> None:
        """Copy the columns of a row into the step's cache; the row then runs there."""
        assert row.cache is not None
        static = self._step.fill(view_columns(last_columns(row.cache, row.place, row.length)))
        layers = []
        for one in static.layers:
            layer = GrowingLayer()
            layer.lazy_initialization(one.keys, one.values)
            layer.stored = (one.keys, one.values)
            layer.cut(row.length)
            layers.append(layer)
        self._cache = row.cache = Cache(layers=layers)
        row.place = 0

    def _ids(self, token: int) -> torch.Tensor:
        return torch.tensor([[token]], device=device_of(self._step.model))  # (1, 1)
