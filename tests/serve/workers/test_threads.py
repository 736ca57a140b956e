"""Memory that threads have freed goes back to the system."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil
import pytest

from llava.serve import controller as controller_module
from llava.serve.workers.threads import give_back_memory

MEGABYTE = 2**20


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
