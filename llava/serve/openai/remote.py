"""In front of a controller: every model that is registered there, asked by the protocol of its workers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx2
from PIL import Image

from llava.conversation import Conversation, conv_templates, template_of
from llava.inference.dialog import Dialog, RawPrompt
from llava.inference.engine import EngineDead, EngineStats, Piece, QueueFull, Ticket, Usage
from llava.inference.sampling import SamplingParams
from llava.inference.streaming import first_stop, overlap
from llava.serve.errors import ServeError, bad_request
from llava.serve.openai.models import Served, not_served
from llava.serve.openai.settings import ServedModel
from llava.serve.workers import frames
from llava.serve.workers.client import encode_png, stream_frames
from llava.serve.workers.discovery import Discovery, Way, way_to_ask
from llava.serve.workers.frames import MESSAGES, ErrorCode
from llava.serve.workers.messages import messages_of
from llava.serve.workers.params import MAX_IMAGES, MAX_NEW_TOKENS, TOO_LONG

# As many streams as a controller relays at a time.
MAX_STREAMS = 256
# For so long a list of models is believed.
LIST_SECONDS = 1.0
RETRY_S = 2.0


class ControllerModels:
    """The models of a controller's workers; its answers run in an event loop of their own, in one thread.

    conv_mode: the template of every model (default: what its worker tells, else what its name suggests).
    """

    def __init__(
        self, address: str, *, api_key: str | None = None, conv_mode: str | None = None,
        max_streams: int = MAX_STREAMS,
    ) -> None:  # fmt: skip
        self.address = address.rstrip("/")
        self._api_key, self._conv_mode, self._max_streams = api_key, conv_mode, max_streams
        self._discovery = Discovery(self.address, api_key=api_key)
        self._listed: tuple[float, dict[str, Any]] = (-LIST_SECONDS, {"models": []})  # when, and the list
        self._served: dict[tuple[str, Way], Served] = {}
        self._streams: dict[Ticket, asyncio.Task[str]] = {}
        self._ended: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._number = 0
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._client = httpx2.AsyncClient(
            headers=frames.headers(api_key),
            timeout=httpx2.Timeout(frames.STREAM_TIMEOUT_S, connect=frames.CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            follow_redirects=False,
            trust_env=False,
            verify=frames.tls_context(),
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name="llava-controller", daemon=True)
        self._thread.start()

    # ---- what a server asks ----

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return not self._closed

    async def listed(self) -> dict[str, ServedModel]:
        """Return the models by name. Raises ServeError (503) when the controller does not answer."""
        found = await self._list(LIST_SECONDS)
        return {name: self._serve(name, self._way(name, found)).model for name in found["models"]}

    async def find(self, name: str) -> Served:
        """Return a model. Raises ServeError: 404 for one that no worker had, 503 while its workers are away.

        503 as well without a controller.
        """
        found = await self._list(LIST_SECONDS)
        if name not in found["models"]:
            found = await self._list(0)
        if name not in found["models"]:
            if any(name == served for served, _ in self._served):  # clients try a 503 again, and no 404
                message = f"no worker has {name} now; it was served here before, try again"
                raise ServeError(503, message, code="no_worker", retry_after_s=5)
            raise not_served(name, found["models"])
        told = await asyncio.to_thread(self._discovery.told, name, found)
        return self._serve(name, self._way(name, told))

    async def check_health(self) -> None:
        """Raise ServeError (503) when the controller does not answer."""
        await self._list(0)

    def stats(self) -> EngineStats:
        """Return how many answers run, and how those before have ended; the rest is the workers' to tell."""
        with self._lock:
            running, ended = len(self._streams), dict(self._ended)
        return EngineStats(running, 0, self._max_streams, 0, 0, 0, 0, 0, 0, 0.0, requests_total=ended)

    def close(self) -> None:
        """End all answers."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        with self._lock:
            left = dict(self._streams)
        for ticket, task in left.items():
            ticket.end("error", EngineDead("the server is being shut down"))
            task.cancel()
        await asyncio.gather(*left.values(), return_exceptions=True)
        await self._client.aclose()

    async def _list(self, age: float) -> dict[str, Any]:
        """Return what the controller tells of its models, no older than `age` seconds."""
        when, found = self._listed
        if time.monotonic() - when < age:
            return found
        try:
            url = f"{self.address}/list_models"
            found = await asyncio.to_thread(frames.post, url, None, api_key=self._api_key)
            found = {**found, "models": [str(one) for one in found["models"]]}
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise self._gone(error) from error
        self._listed = time.monotonic(), found
        return found

    def _way(self, name: str, told: Mapping[str, Any]) -> Way:
        return way_to_ask(name, told, self._conv_mode)

    def _serve(self, name: str, way: Way) -> Served:
        key = (name, way)
        if key not in self._served:
            if len(self._served) > 1000:  # workers come and go under ever new names
                self._served.clear()
            self._served[key] = self._made(*key)
        return self._served[key]

    def _made(self, name: str, way: Way) -> Served:
        template = conv_templates[way.template]
        model = ServedModel(
            names=(name,),
            template=template,
            tokenizer=None,
            context=None,
            vocabulary=0,
            by_worker=True,
            longest_answer=MAX_NEW_TOKENS,
        )
        return Served(model, RemoteEngine(self, name, template if way.by_messages else None))

    # ---- answers ----

    def ask(self, params: Mapping[str, Any], stops: tuple[str, ...]) -> Ticket:
        """Ask a worker; returns the ticket of its answer. Raises QueueFull, EngineDead."""
        headers = frames.headers(self._api_key)  # with the id of the request that is being answered
        with self._lock:
            if self._closed:
                raise EngineDead("the server is being shut down")
            if len(self._streams) >= self._max_streams:
                raise QueueFull(len(self._streams), RETRY_S)
            self._number += 1
            ticket = Ticket(self._number, 0, place_of=lambda _: 0, cancelled=self._cancel)
            ticket.usage = Usage(0, counted=False)
            begun: Coroutine[Any, Any, str] = self._answer(ticket, params, stops, headers)
            future = asyncio.run_coroutine_threadsafe(self._begin(ticket, begun), self._loop)
        future.result(30)
        return ticket

    async def _begin(self, ticket: Ticket, answering: Coroutine[Any, Any, str]) -> None:
        task = self._loop.create_task(answering)
        with self._lock:
            self._streams[ticket] = task
        # also called for a task that is cancelled before its first step
        task.add_done_callback(lambda done: self._finish(ticket, done))

    def _finish(self, ticket: Ticket, task: asyncio.Task[str]) -> None:
        """End a ticket as its task has ended."""
        failure = None if task.cancelled() else task.exception()
        reason = "cancelled" if task.cancelled() else "error" if failure is not None else task.result()
        with self._lock:
            del self._streams[ticket]
            self._ended[reason] += 1
        ticket.end(reason, failure if isinstance(failure, Exception) else None)

    def _cancel(self, ticket: Ticket) -> None:
        task = self._streams.get(ticket)
        if task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(task.cancel)

    async def _answer(
        self, ticket: Ticket, params: Mapping[str, Any], stops: tuple[str, ...], headers: Mapping[str, str]
    ) -> str:
        """Pass a worker's frames on to a ticket; return why the answer ended. Raises ServeError."""
        answer = AnswerText(len(params.get("prompt", "")), stops, stripped=not params.get("raw"))
        try:
            found = stream_frames(self._client, self.address, params, headers=headers)
            return await self._follow(ticket, found, answer)
        except (httpx2.HTTPError, httpx2.InvalidURL, frames.FrameError) as error:
            raise self._gone(error) from error

    async def _follow(self, ticket: Ticket, found: AsyncIterator[dict[str, Any]], answer: AnswerText) -> str:
        """Put an answer's text into its ticket as it comes; return why it ended. Raises ServeError."""
        reason = "stop"
        async with aclosing(found) as stream:  # type: ignore[type-var]
            async for one in stream:
                check_frame(one, answer.start)
                usage = read_usage(one.get("usage"))
                ticket.usage = usage or ticket.usage
                if one.get("finish_reason") in ("length", "context"):
                    reason = "length"
                self._put(ticket, answer.put(one["text"]))
                if answer.stopped:
                    return "stop"
        self._put(ticket, answer.end())
        return reason

    @staticmethod
    def _put(ticket: Ticket, text: str) -> None:
        if text:
            if ticket.time_to_first_token is None:
                ticket.time_to_first_token = time.monotonic() - ticket.submitted
            ticket.put(Piece(text))

    def _gone(self, error: Exception) -> ServeError:
        """Return what a client is told of a controller that does not answer, or refuses."""
        if isinstance(error, httpx2.HTTPStatusError) and error.response.status_code == 413:
            message = "the request is larger than the controller takes; send smaller images"
            return ServeError(413, message, code="body_too_large")
        if isinstance(error, httpx2.HTTPStatusError):
            message = f"the controller refuses the request (status {error.response.status_code})"
            return ServeError(502, message, code="controller_refuses")
        if isinstance(error, httpx2.ReadTimeout):
            message = f"the worker was silent for {frames.STREAM_TIMEOUT_S:g} seconds; ask again"
            return ServeError(504, message, code="worker_gone", retry_after_s=RETRY_S)
        message = f"the controller does not answer ({type(error).__name__}); ask again"
        return ServeError(503, message, code="controller_gone", retry_after_s=RETRY_S)


@dataclass(frozen=True)
class RemoteEngine:
    """One model of a controller, asked as an engine is.

    by_messages: the empty dialog in the model's template, where its worker renders dialogs itself.
    """

    models: ControllerModels
    name: str
    by_messages: Conversation | None = None

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self.models.alive

    def submit(self, prompt: Dialog | RawPrompt, params: SamplingParams, **options: Any) -> Ticket:
        """Ask for one answer; see submit_choices."""
        return self.submit_choices(prompt, params, n=1, **options)[0]

    def submit_choices(
        self,
        prompt: Dialog | RawPrompt,
        params: SamplingParams,
        *,
        n: int,
        top_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> list[Ticket]:
        """Ask for n answers, each by a request of its own; fields that workers do not know were refused."""
        assert top_logprobs is None and not logit_bias
        asked, stops = self._asked(prompt, params.stop)
        images = [one for one in prompt.images if isinstance(one, Image.Image)]
        assert len(images) == len(prompt.images)  # a server decodes them, under its limits, before it asks
        if len(images) > MAX_IMAGES:
            raise bad_request(f"the request has more than {MAX_IMAGES} images", code="too_many_images")
        content = {
            "model": self.name,
            **asked,
            "temperature": params.temperature,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "max_new_tokens": params.max_new_tokens,
            "images": [encode_png(one) for one in images] or None,
        }
        tickets: list[Ticket] = []
        try:
            for _ in range(n):
                tickets.append(self.models.ask(content, stops))
        except BaseException:
            for one in tickets:
                one.cancel()
            raise
        return tickets

    def _asked(
        self, prompt: Dialog | RawPrompt, more_stops: tuple[str, ...]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the fields that tell a worker what to answer, and the strings that end the answer."""
        if isinstance(prompt, Dialog) and self.by_messages is not None:
            messages = messages_of(prompt.conversation, self.by_messages)
            return {MESSAGES: messages, "stop": list(more_stops) or None}, more_stops
        text, own_stops = _text_of(prompt)
        stops = (*own_stops, *more_stops)
        # workers of the reference take one string; the rest is looked for here
        asked = {"prompt": text, "stop": next(iter(stops), None)}
        return (asked if isinstance(prompt, Dialog) else {**asked, "raw": True}), stops

    def stats(self) -> EngineStats:
        """Return the numbers of all models."""
        return self.models.stats()

    def close(self, drain_seconds: float = 0.0) -> None:
        """End the answers of all models."""
        self.models.close()


def _text_of(prompt: Dialog | RawPrompt) -> tuple[str, tuple[str, ...]]:
    """Return a prompt as text, and the strings that end its answer. Raises ServeError for token ids."""
    if isinstance(prompt, Dialog):
        template = template_of(prompt.conversation)
        return prompt.conversation.get_prompt(), tuple(template.stop_strings())
    if not isinstance(prompt.prompt, str):
        raise bad_request(
            "the prompt is token ids, which workers do not take; send text",
            param="prompt",
            code="unsupported_parameter",
        )
    return prompt.prompt, prompt.stop


class AnswerText:
    """The text of an answer out of frames that hold prompt and answer so far; stripped, and cut at stops.

    start: length of the prompt. What may become a stop string, and blanks at the end, are held back.
    stripped: False for what continues a text and keeps its blanks.
    """

    def __init__(self, start: int, stops: tuple[str, ...], *, stripped: bool) -> None:
        self.start, self.stops, self.stripped = start, stops, stripped
        self.stopped = False
        self._told = ""
        self._whole = ""

    def put(self, text: str) -> str:
        """Take the text of a frame; return what has become certain."""
        self._whole = text[self.start :]
        cut = first_stop(self._whole, self.stops)
        if cut is not None:
            self.stopped = True
            return self._tell(self._whole[:cut])
        held = max((overlap(self._whole, one) for one in self.stops), default=0)
        return self._tell(self._whole[: len(self._whole) - held])

    def end(self) -> str:
        """Return what was held back."""
        return "" if self.stopped else self._tell(self._whole)

    def _tell(self, text: str) -> str:
        if self.stripped:
            text = text.strip()
        if not text.startswith(self._told):  # the worker has changed what it said; nothing can be taken back
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece


# kind of failure -> status, code and when to try again, where a worker tells only the kind
_KINDS = {
    ErrorCode.NO_WORKER: (503, "no_worker", 5.0),
    ErrorCode.WORKER_GONE: (502, "worker_gone", 1.0),
}


def check_frame(one: Mapping[str, Any], start: int) -> None:
    """Raise ServeError for a frame that tells a failure; start: length of the prompt."""
    error, number = one.get("error"), one["error_code"]
    if number == 0 and not error:
        if one["text"][start:] == TOO_LONG:  # all that a worker of the reference says of it
            raise bad_request("the prompt is too long for this model", code="context_length_exceeded")
        return
    status, code, again = _KINDS.get(number, (502, "worker_failed", None))
    told = error if isinstance(error, Mapping) else {}
    given = told.get("status")
    if isinstance(given, int) and 400 <= given < 600:
        status, again = given, _seconds(told.get("retry_after_s"))
    raise ServeError(
        status,
        str(told.get("message") or one["text"])[:2000],
        code=str(told.get("code") or code)[:100],
        param=_param(told.get("param")),
        retry_after_s=again,
    )


# fields of the workers' protocol -> those of the requests that they were made of
_PARAMS = {"images": "messages", "max_new_tokens": "max_tokens"}


def _param(given: object) -> str | None:
    return _PARAMS.get(given, given[:100]) if isinstance(given, str) else None


def _seconds(value: object) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0 <= float(value) <= 3600 else None  # type: ignore[arg-type]


def read_usage(told: object) -> Usage | None:
    """Return the usage that a frame tells; None where it tells none."""
    if not isinstance(told, Mapping):
        return None
    numbers = [told.get(one) for one in ("prompt_tokens", "completion_tokens")]
    cached = told.get("cached_tokens", 0)
    if not all(isinstance(one, int) and one >= 0 for one in (*numbers, cached)):
        return None
    return Usage(numbers[0], cached, numbers[1])  # type: ignore[arg-type]
