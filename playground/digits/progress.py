"""A line at least every few seconds while a step of the quickstart runs."""

from __future__ import annotations

import time

SECONDS = 5.0  # between two lines, unless the work itself has no point where a line could be printed


class Progress:
    """Prints how far a loop is, its rate and the time left; never more often than every SECONDS."""

    def __init__(self, name: str, total: int, unit: str = "steps") -> None:
        self.name, self.total, self.unit = name, total, unit
        self._done = 0
        self._start = self._printed = time.monotonic()

    def add(self, count: int = 1, note: str = "") -> None:
        """Count work that is done; print a line if it is time for one, or if it was the last."""
        self._done += count
        now = time.monotonic()
        if now - self._printed < SECONDS and self._done < self.total:
            return
        self._printed = now
        seconds = max(now - self._start, 1e-9)
        left = (self.total - self._done) * seconds / self._done
        rate = f"{self._done / seconds:.0f} {self.unit}/s"
        end = f"{seconds:.0f} s" if self._done >= self.total else f"{left:.0f} s left"
        parts = [f"{self._done}/{self.total} {self.unit}", *([note] if note else []), rate, end]
        print(f"  {self.name}: {', '.join(parts)}", flush=True)
