"""Limits of a server, as ASGI middleware: sizes of headers and bodies, slow clients, requests per client."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from llava.serve.errors import App, Message, Receive, Scope, Send, ServeError, header_values, send_error

_REQUEST_ID = re.compile(r"[A-Za-z0-9_\-]{1,64}")
# The id of the request that is being answered, for log lines.
request_id: ContextVar[str] = ContextVar("request_id", default="-")


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"req_{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Limits:
    """How much a client may send, and how fast. per_minute: requests of one client; None is no limit."""

    max_body_bytes: int = 64 * 1024 * 1024
    max_header_bytes: int = 16 * 1024
    body_timeout_s: float = 30.0
    per_minute: int | None = None


class RequestIds:
    """Gives every request an id, or keeps a harmless one of the client, and sends it back as x-request-id."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = header_values(scope, "x-request-id")
        known = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        chosen = given[0] if known else new_request_id()
        token = request_id.set(chosen)
        scope.setdefault("state", {})["request_id"] = chosen

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", chosen.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            request_id.reset(token)


class HeaderLimit:
    """Refuses requests whose address and headers are too long (431), before anything reads them."""

    def __init__(self, app: App, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            size = sum(len(name) + len(value) for name, value in scope["headers"])
            size += len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
            if size > self.max_bytes:
                message = f"address and headers take {size:,} bytes; at most {self.max_bytes:,} are read"
                return await send_error(send, ServeError(431, message, code="headers_too_large"), close=True)
        await self.app(scope, receive, send)


class BodyLimit:
    """Receives a request's body before the application is called: not too large (413), not too slow (408).

    The body is kept in memory, so this stands behind whatever turns strangers away. What a client sends
    beyond the limit is dropped as it comes, within the time limit, so that the client hears the answer.
    """

    def __init__(self, app: App, *, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await asyncio.wait_for(self._read(receive), self.timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            slow = f"the body did not arrive within {self.timeout_s:g} seconds"
            return await send_error(send, ServeError(408, slow, code="body_timeout"), close=True)
        except _Gone:
            return
        if body is None:
            large = f"the body is larger than {self.max_bytes:,} bytes; send smaller images"
            return await send_error(send, ServeError(413, large, code="body_too_large"), close=True)
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body; None for one that is too large, once it has come to its end."""
        body: bytearray | None = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            if body is not None:
                body += message.get("body", b"")
                if len(body) > self.max_bytes:
                    body = None
            if not message.get("more_body", False):
                return None if body is None else bytes(body)


class _Gone(Exception):
    """The client went away."""


class RateLimit:
    """Lets each client begin so many requests a minute (429 beyond them), evenly, with bursts of a tenth.

    A client is the address it comes from. Requests for `free` paths are not counted; free_reads: nor is GET.
    """

    def __init__(
        self,
        app: App,
        *,
        per_minute: int,
        free: tuple[str, ...] = (),
        free_reads: bool = False,
        clock: Callable[[], float] = time.monotonic,
        max_clients: int = 10_000,
    ) -> None:
        self.app = app
        self.per_second = per_minute / 60
        self.burst = max(1.0, per_minute / 10)
        self.free = free
        self.free_reads = free_reads
        self.clock = clock
        self.max_clients = max_clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (left, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and not self._is_free(scope):
            wait_s = self.take((scope.get("client") or ("unknown", 0))[0])
            if wait_s > 0:
                message = "too many requests from this address; slow down"
                error = ServeError(429, message, code="rate_limit_exceeded", retry_after_s=wait_s)
                return await send_error(send, error)
        await self.app(scope, receive, send)

    def _is_free(self, scope: Scope) -> bool:
        return scope["path"] in self.free or (self.free_reads and scope["method"] in ("GET", "HEAD"))

    def take(self, client: str) -> float:
        """Count a request; return 0, or how many seconds are to pass before the next one is welcome."""
        now = self.clock()
        left, when = self._buckets.pop(client, (self.burst, now))
        left = min(self.burst, left + (now - when) * self.per_second)
        wait_s = 0.0 if left >= 1 else (1 - left) / self.per_second
        self._buckets[client] = (left if wait_s else left - 1, now)
        while len(self._buckets) > self.max_clients:
            self._buckets.popitem(last=False)
        return wait_s
