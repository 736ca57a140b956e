"""How far a run is: questions a second and the time left, on a terminal or now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

LOG_EVERY_S = 30.0  # where no terminal shows a line that changes
SHOW_EVERY_S = 0.2


class Progress:
    """Tells how many of `total` questions are answered. done: those of an earlier run."""

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool = False,
    ) -> None:
        self.name, self.total, self.done, self.failed = name, total, done, 0
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._quiet = clock, quiet
        self._is_terminal = self._stream.isatty()
        self._start = self._shown = clock()
        self._first = done

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._start

    @property
    def rate(self) -> float:
        """Questions a second, of those that were asked in this run."""
        return (self.done + self.failed - self._first) / max(self.seconds, 1e-9)

    def add(self, *, failed: bool = False) -> None:
        """Count a question."""
        if failed:
            self.failed += 1
        else:
            self.done += 1
        now = self._clock()
        if now - self._shown >= (SHOW_EVERY_S if self._is_terminal else LOG_EVERY_S):
            self._shown = now
            self._show()

    def end(self) -> None:
        """Show the last state."""
        self._show(last=True)

    def line(self) -> str:
        """Return the state in words."""
        share = 100 * self.done / max(self.total, 1)
        text = f"{self.name}: {self.done:,} of {self.total:,} ({share:.1f} %)"
        if self.failed:
            text += f", {self.failed:,} failed"
        left = self.total - self.done - self.failed
        if self.done + self.failed > self._first:
            text += f", {self.rate:.2f} questions/s"
            text += f", {_duration(left / self.rate)} left" if left else f", {_duration(self.seconds)}"
        return text

    def _show(self, *, last: bool = False) -> None:
        if self._quiet:
            return
        if self._is_terminal:
            self._stream.write(f"\r\x1b[K{self.line()}" + ("\n" if last else ""))
        else:
            self._stream.write(f"{self.line()}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
