"""Generators that wait, read from the event loop without holding it up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def in_thread(items: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """Yield from a generator, each step in a thread; closes it at the end, also when the reader leaves.

    The threads are not those of other work: many generators that wait keep nothing else waiting. A step that
    has begun ends before the generator is closed.
    """
    limiter = anyio.CapacityLimiter(1)
    end = object()
    try:
        while True:
            item = await anyio.to_thread.run_sync(next, items, end, limiter=limiter)
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        items.close()
