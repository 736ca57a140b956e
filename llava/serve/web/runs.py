"""Answers that are being written: one for each open page, which may be stopped at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from llava.serve.web.asking import Progress

# A page is sent at most so many versions of an answer a second; what comes faster is shown together.
PAUSE_S = 0.05


class Run:
    """An answer that is being written, read by one page and stopped by anybody."""

    def __init__(self) -> None:
        self.stopped = False
        self.discarded = False  # nobody wants to see it any more
        self._changed = asyncio.Event()
        self._latest: Progress | None = None
        self._ended = asyncio.Event()

    def stop(self) -> None:
        """End the answer where it is."""
        self.stopped = True
        self._changed.set()

    async def follow(
        self, answer: AsyncGenerator[Progress, None], *, pause_s: float = PAUSE_S
    ) -> AsyncGenerator[Progress, None]:
        """Yield the latest of an answer until it ends or is stopped. Raises what the answer raises.

        However this ends, also when the page was closed, the answer is closed as well.
        """
        reader = asyncio.ensure_future(self._read(answer))
        try:
            while not self.stopped:
                await self._changed.wait()
                self._changed.clear()
                if self._latest is not None:
                    latest, self._latest = self._latest, None
                    yield latest
                if reader.done() and self._latest is None:  # more may have come while the page was told
                    reader.result()
                    return
                await asyncio.wait({reader}, timeout=pause_s)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await answer.aclose()

    async def _read(self, answer: AsyncGenerator[Progress, None]) -> None:
        try:
            async for one in answer:
                self._latest = one
                self._changed.set()
        finally:
            self._changed.set()

    def end(self) -> None:
        """Let those go on that wait for the end."""
        self._ended.set()

    async def wait(self) -> None:
        """Wait until the page was told the last of the answer."""
        await self._ended.wait()


class Runs:
    """The answers of all pages; a page writes one at a time."""

    def __init__(self) -> None:
        self._of_page: dict[str, Run] = {}

    async def begin(self, page: str) -> Run:
        """Return a new answer of a page; one that is still being written is stopped first."""
        while (old := self._of_page.get(page)) is not None:
            old.discarded = True
            old.stop()
            await old.wait()
        self._of_page[page] = run = Run()
        return run

    def end(self, page: str, run: Run) -> None:
        """Note that an answer has ended."""
        if self._of_page.get(page) is run:
            del self._of_page[page]
        run.end()

    def stop(self, page: str, *, discard: bool = False) -> None:
        """Stop the answer of a page, if there is one; discard: it is not to be shown any more."""
        run = self._of_page.get(page)
        if run is not None:
            run.discarded |= discard
            run.stop()

    def __len__(self) -> int:
        return len(self._of_page)
