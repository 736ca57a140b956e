"""Running an ASGI application: deadlines, errors for what does not reach it, a shutdown that waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava.serve.errors import (
    LAST_WORDS,
    App,
    Message,
    Receive,
    Scope,
    Send,
    ServeError,
    WatchedSend,
    internal_error,
    send_error,
)
from llava.serve.guard import guard
from llava.serve.limits import new_request_id
from llava.serve.sockets import url_of

logger = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 15
LAST_WORDS_S = 1.0  # for a client that reads nothing when the server is stopped
MAX_HEAD_BYTES = 32 * 1024
MAX_CONNECTIONS = 1024


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP with a deadline, and with errors in the form of the API where uvicorn's are plain text.

    A connection whose request has no whole head within the deadline is closed. Without one, a client that
    opens connections and says nothing keeps them for ever.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    max_connections = MAX_CONNECTIONS
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._application: App = self.app  # type: ignore[assignment]
        self.app = self._answer  # type: ignore[assignment]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; what the application does not answer is answered here."""
        watched = WatchedSend(send)
        told = None
        try:
            if max(len(self.connections), len(self.tasks)) > self.max_connections:
                told = _too_many()
            else:
                await self._application(scope, receive, watched)
        except asyncio.CancelledError:
            told = _shutting_down()
            if watched.begun:
                await self._cut_off(scope, watched, told)
        except Exception as error:
            logger.error("request %s failed", _id_of(scope), exc_info=error)
            told = internal_error()
        else:
            if not watched.begun and told is None and not self.transport.is_closing():
                logger.error("request %s was not answered by the application", _id_of(scope))
                told = internal_error()
        if told is not None and not watched.begun:
            await _send(send, told, _id_of(scope))

    async def _cut_off(self, scope: Scope, send: WatchedSend, error: ServeError) -> None:
        """End an answer that has begun: with the last words of its application, or with the connection."""
        if send.ended:
            return
        logger.warning("request %s was cut off: %s", _id_of(scope), error.message)
        words = scope.get("state", {}).get(LAST_WORDS)
        if words is not None:
            body = {"type": "http.response.body", "body": words(error)}
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(send(body), LAST_WORDS_S)
                return
        if self.cycle is not None:
            self.cycle.disconnected = True  # nothing more of it can be sent
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP with the status that h11 names; called where its error was caught."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # an answer is on its way, or was sent; no other one can follow
            return
        told, name = _no_http(sys.exc_info()[1] or msg), new_request_id()
        logger.info("%s: refused with %d, %s", (self.client or ("-",))[0], told.status, name)
        data = json.dumps(told.body).encode()
        fields = {**told.headers, "content-type": "application/json", "content-length": str(len(data))}
        fields |= {"x-request-id": name, "connection": "close"}
        status = HTTPStatus(told.status)
        head = h11.Response(
            status_code=status.value, reason=status.phrase.encode(), headers=list(fields.items())
        )
        for event in (head, h11.Data(data=data), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        """Start the clock where a head is awaited or has begun, stop it where one is whole."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _no_http(error: BaseException | str) -> ServeError:
    """Return the error for what h11 could not read."""
    status = getattr(error, "error_status_hint", 400)  # of h11's RemoteProtocolError
    if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        message = f"the head of the request is longer than {MAX_HEAD_BYTES:,} bytes"
        return ServeError(status, message, code="headers_too_large")
    return ServeError(status, f"this is no request of HTTP/1.1: {str(error)[:200]}", code="invalid_http")


def _too_many() -> ServeError:
    message = "too many connections are open; come again"
    return ServeError(503, message, code="too_many_connections", retry_after_s=1)


def _shutting_down() -> ServeError:
    message = "the server is being shut down, and the answer took longer than it waits"
    return ServeError(503, message, code="shutting_down", retry_after_s=5)


def _id_of(scope: Scope) -> str:
    """Return the id of a request; one that never reached the guards gets it here."""
    return str(scope.setdefault("state", {}).setdefault("request_id", new_request_id()))


async def _send(send: Send, error: ServeError, name: str) -> None:
    """Send an error from outside of the guards, which name the request otherwise."""

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
        await send(message)

    await send_error(send_with_id, error, close=True)


def make_server(
    app: App, *, drain_seconds: float, protocol: type[GuardedProtocol] = GuardedProtocol
) -> uvicorn.Server:
    """Return a server for an application; `run(sockets=[...])` serves until SIGTERM or Ctrl-C.

    Then no connection is taken any more, answers that run have `drain_seconds` to end, and the application's
    lifespan ends. Addresses that proxies claim (X-Forwarded-For) are not believed.
    """
    config = uvicorn.Config(
        _closing(app),
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    return uvicorn.Server(config)


def _closing(app: App) -> App:
    """Return an application whose lifespan ends also where the server does not wait (a second Ctrl-C)."""

    async def closing(scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_or_end() -> Message:
            try:
                return await receive()
            except asyncio.CancelledError:
                return {"type": "lifespan.shutdown"}

        await app(scope, receive_or_end if scope["type"] == "lifespan" else receive, send)

    return closing


def run_server(app: App, listening: socket.socket, *, api_key: str | None, drain_seconds: float = 30) -> None:
    """Serve an application behind its guard until the process is told to stop; then answers that run end."""
    logger.info("listening at %s", url_of(listening))
    server = make_server(guard(app, api_key=api_key), drain_seconds=drain_seconds)
    server.run(sockets=[listening])
