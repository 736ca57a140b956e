"""From a request to the engine and back: submitting, following several answers at once, typed errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from llava.inference.engine import (
    AnyEngine,
    Dialog,
    DoesNotFit,
    EngineDead,
    EngineError,
    Event,
    OutOfMemory,
    Piece,
    PromptTooLong,
    QueueFull,
    RawPrompt,
    Ticket,
    Token,
)
from llava.inference.sampling import MIN_TEMPERATURE, SamplingParams
from llava.serve.errors import Receive, ServeError, bad_request, internal_error
from llava.serve.limits import request_id
from llava.serve.openai.schema import Sampling
from llava.utils import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """Prompts for the engine, each answered n times, with all that decides about the answers."""

    prompts: Sequence[Dialog | RawPrompt]
    params: SamplingParams
    n: int = 1
    top_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None


def sampling_params(
    request: Sampling, *, max_tokens: int | None, stop: str | Sequence[str] | None, default: int, most: int
) -> SamplingParams:
    """Return the settings of a request; an answer is at most `most` tokens long, whatever was asked for."""
    temperature = 1.0 if request.temperature is None else float(request.temperature)
    return SamplingParams(
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=request.top_p,
        top_k=None if request.top_k is None else max(0, request.top_k),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        max_new_tokens=min(default if max_tokens is None else max_tokens, most),
        seed=None if request.seed is None else request.seed % 2**63,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
    )


def read_logit_bias(given: Mapping[str, float] | None, vocabulary: int) -> dict[int, float] | None:
    """Return the ids and their biases. Raises ServeError for what is no id of the model."""
    biases = {}
    for key, value in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocabulary):
            raise bad_request(
                f"logit_bias names {key[:40]!r}; expected token ids from 0 to {vocabulary - 1}",
                param="logit_bias",
            )
        biases[int(key)] = float(value)
    return biases or None


async def submit(engine: AnyEngine, job: Job) -> list[Ticket]:
    """Hand a job to the engine off the event loop: the tickets of the first prompt, then of the next.

    Cancelled meanwhile, it cancels what the engine has taken by then. Raises ServeError.
    """
    taken = asyncio.ensure_future(asyncio.to_thread(_submit, engine, job))
    try:
        return await asyncio.shield(taken)
    except asyncio.CancelledError:
        taken.add_done_callback(_cancel_taken)
        raise
    except Exception as error:
        raise serve_error(error) from error


def _submit(engine: AnyEngine, job: Job) -> list[Ticket]:
    tickets: list[Ticket] = []
    if len(job.prompts) > 1:
        stats = engine.stats()
        room = max(1, stats.max_waiting + stats.max_running // job.n)
        if len(job.prompts) > room:  # a full queue would be one to try again at
            raise bad_request(
                f"the request has {len(job.prompts)} prompts; this server holds at most {room} of them at a "
                "time, running and waiting; send fewer",
                param="prompt",
                code="request_too_large",
            )
    try:
        for prompt in job.prompts:
            tickets += engine.submit_choices(
                prompt, job.params, n=job.n, top_logprobs=job.top_logprobs, logit_bias=job.logit_bias
            )
    except BaseException:
        cancel(tickets)
        raise
    return tickets


def _cancel_taken(taken: asyncio.Future[list[Ticket]]) -> None:
    if not taken.cancelled() and taken.exception() is None:
        cancel(taken.result())


def cancel(tickets: Sequence[Ticket]) -> None:
    """End requests that nobody waits for; what is done stays as it is."""
    for ticket in tickets:
        ticket.cancel()


async def follow(tickets: Sequence[Ticket]) -> AsyncGenerator[tuple[int, Event | None], None]:
    """Yield (index, event) of several answers as they come; (index, None) when one has ended.

    Raises ServeError when one fails; then, and when the reader leaves, all are cancelled.
    """
    queue: asyncio.Queue[tuple[int, Event | None | Exception]] = asyncio.Queue()
    readers = [asyncio.ensure_future(_read(index, one, queue)) for index, one in enumerate(tickets)]
    try:
        left = len(tickets)
        while left:
            index, event = await queue.get()
            if isinstance(event, Exception):
                raise serve_error(event) from event
            left -= event is None
            yield index, event
    finally:
        for reader in readers:
            reader.cancel()
        cancel(tickets)
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    index: int, ticket: Ticket, queue: asyncio.Queue[tuple[int, Event | None | Exception]]
) -> None:
    """Pass the events of one answer on; the last is None or an exception."""
    try:
        async for event in ticket:
            queue.put_nowait((index, event))
        ended = EngineDead("the server is being shut down") if ticket.finish_reason == "cancelled" else None
        queue.put_nowait((index, ended))
    except Exception as error:
        queue.put_nowait((index, error))


@dataclass
class FinishedAnswer:
    """An answer that has ended: its text, tokens, and why it ended, in OpenAI's words."""

    text: str
    tokens: list[Token]
    finish_reason: str


async def collect(tickets: Sequence[Ticket]) -> list[FinishedAnswer]:
    """Wait for all answers. Raises ServeError when one fails; the others are cancelled then."""
    texts: list[list[str]] = [[] for _ in tickets]
    tokens: list[list[Token]] = [[] for _ in tickets]
    async with aclosing(follow(tickets)) as events:
        async for index, event in events:
            if isinstance(event, Piece):
                texts[index].append(event.text)
                tokens[index] += event.tokens
    return [
        FinishedAnswer("".join(texts[index]), tokens[index], finish_reason(one))
        for index, one in enumerate(tickets)
    ]


def finish_reason(ticket: Ticket) -> str:
    """Return why an answer ended; a full context is "length", too."""
    return "stop" if ticket.finish_reason == "stop" else "length"


def usage_of(tickets: Sequence[Ticket], n: int) -> dict[str, int | dict[str, int]] | None:
    """Return the usage of a request: a prompt counts once, however many answers it has; None: not known."""
    if not all(one.usage.counted for one in tickets):
        return None
    prompts = sum(one.usage.prompt_tokens for one in tickets[::n])
    cached = sum(one.usage.cached_tokens for one in tickets[::n])
    new = sum(one.usage.completion_tokens for one in tickets)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": new,
        "total_tokens": prompts + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Return what `work` gives, or cancel it and raise ClientGone once the client has hung up."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# kind of exception -> (status, code, seconds until another try)
_KNOWN: tuple[tuple[type[Exception], Callable[[Exception], ServeError]], ...] = (
    (PromptTooLong, lambda error: bad_request(str(error), code="context_length_exceeded")),
    (DoesNotFit, lambda error: bad_request(str(error), code="request_too_large")),
    (UserError, lambda error: bad_request(str(error))),
    (
        OutOfMemory,
        lambda error: ServeError(503, str(error), code="out_of_memory", retry_after_s=2),
    ),
    (EngineDead, lambda error: ServeError(503, str(error), code="engine_dead")),
    (EngineError, lambda error: ServeError(500, str(error), code="engine_error")),
)


def serve_error(error: Exception) -> ServeError:
    """Return what a client is told of an exception; one that is no known kind is logged, and not shown."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, QueueFull):
        return ServeError(429, str(error), code="queue_full", retry_after_s=error.retry_after)
    for kind, make in _KNOWN:
        if isinstance(error, kind):
            return make(error)
    logger.error("request %s failed", request_id.get(), exc_info=error)
    return internal_error()
