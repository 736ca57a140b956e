"""Decoders that wait for the next question: a few of them, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llava.inference.decoder import Decoder

# An idle decoder holds the KV cache of a dialog: about 1 GB for 2048 positions of a 7B model in 16 bits.
MAX_IDLE = 2


class DecoderPool:
    """Lends a decoder to one answer at a time; at most `max_idle` are kept for the questions that follow."""

    def __init__(self, make: Callable[[], Decoder], *, max_idle: int = MAX_IDLE) -> None:
        self._make = make
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._idle: list[Decoder] = []
        self._generation = 0  # `forget` drops decoders that are lent out as well, when they come back

    def __len__(self) -> int:
        return len(self._idle)

    @contextmanager
    def lend(self) -> Iterator[Decoder]:
        """Give a decoder of its own to an answer, the one used last if it is idle."""
        with self._lock:
            decoder = self._idle.pop() if self._idle else None
            generation = self._generation
        if decoder is None:
            decoder = self._make()
        try:
            yield decoder
        finally:
            with self._lock:
                if len(self._idle) < self._max_idle and generation == self._generation:
                    self._idle.append(decoder)

    def forget(self) -> None:
        """Drop all idle decoders with what they keep."""
        with self._lock:
            self._idle.clear()
            self._generation += 1
