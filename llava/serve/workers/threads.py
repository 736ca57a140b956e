"""Generators that wait, read without holding up the event loop; and the memory that their threads leave."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def in_thread(items: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """Yield from a generator, each step in a thread; closes it at the end, also when the reader leaves.

    The threads are not those of other work: many generators that wait keep nothing else waiting. A step that
    has begun ends before the generator is closed, which nobody waits for when the server is stopped.
    """
    limiter = anyio.CapacityLimiter(1)
    end = object()
    running = threading.Lock()

    def step() -> T | object:
        with running:
            return next(items, end)

    def close(wait: bool) -> bool:
        """Close the generator unless a step runs that is not waited for; tell whether it was closed."""
        if not running.acquire(blocking=wait):
            return False
        try:
            items.close()
        finally:
            running.release()
        return True

    try:
        while True:
            item = await anyio.to_thread.run_sync(step, limiter=limiter)
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        if not close(False):
            threading.Thread(target=close, args=(True,), daemon=True).start()


def give_back_memory() -> bool:
    """Return freed memory to the system through glibc's malloc_trim; tells whether there was any.

    The bodies of relayed requests are freed by many threads, and glibc would keep what each has freed.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # musl, macOS, Windows
        return False
    return bool(trim(0))
