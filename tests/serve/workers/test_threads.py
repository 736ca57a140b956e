"""Generators read in threads are closed however their reader ends; freed memory goes back to the system."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import aclosing

import psutil
import pytest

from llava.serve import controller as controller_module
from llava.serve.workers.threads import give_back_memory, in_thread

MEGABYTE = 2**20


def test_a_reader_that_is_cancelled_in_a_step_closes_the_generator_behind_it() -> None:
    """A stop of the server cancels a second time, while the step of the first one still runs."""
    stepping, may_end, closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield 1
            stepping.set()
            may_end.wait(20)
            yield 2
        finally:
            closed.set()

    async def read() -> None:
        async with aclosing(in_thread(items())) as found:
            async for _ in found:
                pass

    async def cancelled() -> asyncio.Task[None]:
        task = asyncio.ensure_future(read())
        while not stepping.is_set():
            await asyncio.sleep(0.001)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        return task

    task = asyncio.run(cancelled())
    assert task.cancelled() and not closed.is_set()
    may_end.set()
    assert closed.wait(20)


def fragments() -> list[bytes]:
    """Take 60 MB in a thread and free all but a thousandth, so that no end of a heap is free."""
    kept: list[bytes] = []

    def take() -> None:
        blocks = [bytes(4000) for _ in range(15_000)]
        kept.extend(blocks[::1000])

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return kept


def test_freed_memory_goes_back() -> None:
    if not give_back_memory() and not give_back_memory():
        pytest.skip("this C library cannot be asked to, or has nothing to return")
    process = psutil.Process()
    kept = fragments()
    before = process.memory_info().rss
    assert give_back_memory() and len(kept) == 15
    assert before - process.memory_info().rss > 30 * MEGABYTE


def test_the_controller_gives_back_with_each_look_at_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    turns = iter([False, False, True])
    monkeypatch.setattr(controller_module, "give_back_memory", lambda: done.append("memory"))

    class Stub:
        wait: Callable[[float], bool] = staticmethod(lambda seconds: next(turns))
        remove_stable_workers_by_expiration: Callable[[], None] = staticmethod(lambda: done.append("workers"))

    controller_module.heart_beat_controller(Stub())  # type: ignore[arg-type]
    assert done == ["workers", "memory"] * 2
