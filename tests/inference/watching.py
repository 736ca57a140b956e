"""Counting and holding what a model runs, for the tests of this room."""

import contextlib
import threading
from collections.abc import Callable

WAIT_S = 60.0  # for what comes in milliseconds unless the machine stalls


@contextlib.contextmanager
def forwards(model):
    """Collect the number of positions of each forward pass."""
    lengths = []

    def note(module, args, kwargs):
        inputs = kwargs.get("inputs_embeds")
        lengths.append((kwargs["input_ids"] if inputs is None else inputs).shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


@contextlib.contextmanager
def tower_calls(model):
    """Collect one entry a call of the vision tower."""
    calls = []
    handle = model.get_vision_tower().register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


class Gate:
    """Holds a model before its passes, so that what a test does between two of them is no matter of speed.

    It is shut from the beginning; at its end it is open, and away.
    """

    def __init__(self, model) -> None:
        self._changed = threading.Condition()
        self._stop: Callable[[], object] = lambda: True
        self._held = False
        self._hook = model.register_forward_pre_hook(self._wait)

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._hook.remove()

    def _wait(self, *_: object) -> None:
        """In the thread that runs the model."""
        with self._changed:
            while self._stop():
                self._held = True
                self._changed.notify_all()
                self._changed.wait()
            self._held = False

    def run_until(self, condition: Callable[[], object]) -> None:
        """Let passes through until the condition holds before one of them, which then waits."""
        with self._changed:
            self._stop, self._held = condition, False
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._held, WAIT_S), "no pass came to wait"

    def open(self) -> None:
        """Let all passes through."""
        with self._changed:
            self._stop = lambda: False
            self._changed.notify_all()
