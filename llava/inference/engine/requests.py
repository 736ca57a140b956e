"""What an engine takes and gives: tickets and their events, typed errors, and the engine's numbers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from llava.inference.dialog import Answer, Dialog, RawPrompt
from llava.inference.model_inputs import PromptTooLong
from llava.inference.sampling import SamplingParams
from llava.utils import UserError

__all__ = [
    "AnyEngine",
    "DoesNotFit",
    "EngineDead",
    "EngineError",
    "EngineStats",
    "Event",
    "OutOfMemory",
    "Piece",
    "PromptTooLong",
    "QueueFull",
    "Ticket",
    "Token",
    "Usage",
    "Waiting",
]

# A ticket whose answer has nothing new says so after this many seconds, so that servers can keep their
# connections alive.
KEEP_ALIVE_S = 1.0


class EngineError(RuntimeError):
    """The engine could not answer, through no fault of the request."""


class QueueFull(EngineError):
    """No place is left in the queue; `retry_after` is about how many seconds one takes to become free."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"the queue is full: {waiting} request(s) are waiting; try again in {retry_after:.1f} s"
        )
        self.waiting = waiting
        self.retry_after = retry_after


class EngineDead(EngineError):
    """The engine was closed, or ended by a fault of the model or the device; it takes no more requests."""


class OutOfMemory(EngineError):
    """The device had too little memory for this request; the others go on."""


class DoesNotFit(UserError):
    """The request would need more memory than the engine may use, however long it waited."""


@dataclass(frozen=True)
class Token:
    """A generated token; logprob and top are there when `top_logprobs` was asked for.

    logprob: natural logarithm of the probability that the model gave it, before temperature and the other
    settings. top: the likeliest (id, logprob), the likeliest first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that has become certain, and the tokens that came since the last piece.

    Pieces joined are the answer. A character or a possible stop string that is not complete yet is held back;
    its tokens come with a later piece, the last of which may have no text. End tokens are not among them.
    """

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """Nothing new since the last event. place: 1 is the next to run; 0: it runs, its prompt is being read."""

    place: int


Event = Piece | Waiting


@dataclass(frozen=True)
class Usage:
    """Positions of the prompt (images count theirs), of them not computed again, and generated tokens.

    counted: whether whoever answers tells them; workers of the reference do not.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True


class Ticket:
    """A request that waits, runs or is done; its events are read by iterating, once, in one thread or task.

    `for event in ticket` blocks a thread, `async for event in ticket` never blocks the event loop. Both yield
    Piece and Waiting (at least one of them each second), end with the answer, and raise EngineError or
    UserError if it failed. Leaving the loop early, or cancelling the task, cancels the request; a task that
    leaves by `break` should hold the iterator in contextlib.aclosing.
    """

    def __init__(
        self,
        number: int,
        n_prompt: int,
        *,
        place_of: Callable[[Ticket], int],
        cancelled: Callable[[Ticket], None],
    ) -> None:
        self.id = number
        self.submitted = time.monotonic()
        self.usage = Usage(n_prompt)
        # "stop", "length", "context", "cancelled" or "error", once it is done
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.time_to_first_token: float | None = None  # seconds
        self.cancel_asked = False
        self._place_of = place_of
        self._cancelled = cancelled
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._wake: Callable[[], None] | None = None  # of the event loop that reads it

    @property
    def place(self) -> int:
        """Place in the queue: 1 is the next to run, 0 runs or is done."""
        return 0 if self.done else self._place_of(self)

    @property
    def done(self) -> bool:
        """Whether the answer is whole, cancelled or failed; pieces may be left to read."""
        return self.finish_reason is not None

    def cancel(self) -> None:
        """End the request; what waits leaves the queue at once, what runs before the next token."""
        if not self.done:
            self.cancel_asked = True
            self._cancelled(self)

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the answer and return it whole; raises what iterating raises, TimeoutError after `timeout`
        seconds, which leaves it running.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"no answer in {timeout} s")
            pieces = list(self._pieces)
            self._pieces.clear()
        if self.error is not None:
            raise self.error
        text = "".join(one.text for one in pieces)
        ids = tuple(token.id for one in pieces for token in one.tokens)
        return Answer(text, self.finish_reason or "", ids)

    def __iter__(self) -> Iterator[Event]:
        """Yield events until the answer ends."""
        try:
            if place := self.place:
                yield Waiting(place)
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._pieces or self.done, KEEP_ALIVE_S)
                event = self._next_event()
                if event is None:
                    return
                yield event
        finally:
            self.cancel()  # nothing is left to cancel unless the reader has gone

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until the answer ends, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        with self._changed:
            self._wake = lambda: _call_soon(loop, woken.set)
        try:
            if place := self.place:
                yield Waiting(place)
            while True:
                woken.clear()
                if not self._pieces and not self.done:
                    await _wait(woken, KEEP_ALIVE_S)
                event = self._next_event()
                if event is None:
                    return
                yield event
        finally:
            self._wake = None
            self.cancel()

    def _next_event(self) -> Event | None:
        """Return what has come, Waiting when nothing has, None at the end; raises the error of a failure."""
        with self._changed:
            if self._pieces:
                return self._pieces.popleft()
            if not self.done:
                return Waiting(self.place)
        if self.error is not None:
            raise self.error
        return None

    # ---- for engines ----

    def put(self, piece: Piece) -> None:
        """Hand over a piece."""
        self._change(lambda: self._pieces.append(piece))

    def end(self, reason: str, error: Exception | None = None) -> None:
        """End the answer; the first end counts."""
        if self.done:
            return
        self.error = error

        def mark() -> None:
            self.finish_reason = reason

        self._change(mark)

    def _change(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
            wake = self._wake
        if wake is not None:
            wake()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """Call back in an event loop of another thread, if it still runs."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, no longer than `seconds`."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
        return


@dataclass(frozen=True)
class EngineStats:
    """What an engine does now, and what it has done since it began (names ending in `_total`)."""

    running: int
    waiting: int
    max_running: int
    max_waiting: int
    kv_bytes: int  # of the running answers
    kv_budget: int
    cache_bytes: int  # kept for later prompts: KV caches and image features
    cache_budget: int
    cache_entries: int
    tokens_per_second: float  # over the last seconds
    steps_total: int = 0
    generated_tokens_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0  # of the prompts' tokens, those not computed again
    prefix_hits_total: int = 0  # prompts that shared their beginning with what was kept
    prefix_misses_total: int = 0
    image_hits_total: int = 0  # images whose features were kept
    image_misses_total: int = 0
    requests_total: Mapping[str, int] = field(default_factory=dict)  # by finish reason


class AnyEngine(Protocol):
    """What servers ask: `Engine`, or another one in its place. All methods may be called from any thread."""

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""

    def submit(
        self,
        prompt: Dialog | RawPrompt,
        params: SamplingParams,
        *,
        top_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Ticket:
        """Take a request; see Engine.submit."""

    def submit_choices(
        self,
        prompt: Dialog | RawPrompt,
        params: SamplingParams,
        *,
        n: int,
        top_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> list[Ticket]:
        """Take one prompt for n answers; see Engine.submit_choices."""

    def stats(self) -> EngineStats:
        """Return the engine's numbers."""

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, give running ones `drain_seconds`, then end the rest."""
