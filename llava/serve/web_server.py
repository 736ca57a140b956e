"""Running an ASGI application: sockets, deadlines for heads of requests, a shutdown that lets answers end."""

from __future__ import annotations

import asyncio
import logging
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava.serve.errors import App
from llava.serve.guard import guard
from llava.serve.sockets import url_of

logger = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 15
MAX_HEAD_BYTES = 32 * 1024
MAX_CONNECTIONS = 1024


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP with a deadline: a connection whose request has no whole head by then is closed.

    Without one, a client that opens connections and says nothing keeps them for ever.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    _deadline: asyncio.TimerHandle | None = None

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


def make_server(
    app: App, *, drain_seconds: float, protocol: type[GuardedProtocol] = GuardedProtocol
) -> uvicorn.Server:
    """Return a server for an application; `run(sockets=[...])` serves until SIGTERM or Ctrl-C.

    Then no connection is taken any more, answers that run have `drain_seconds` to end, and the application's
    lifespan ends. Addresses that proxies claim (X-Forwarded-For) are not believed.
    """
    config = uvicorn.Config(
        app,
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
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    return uvicorn.Server(config)


def run_server(app: App, listening: socket.socket, *, api_key: str | None, drain_seconds: float = 30) -> None:
    """Serve an application behind its guard until the process is told to stop; then answers that run end."""
    logger.info("listening at %s", url_of(listening))
    server = make_server(guard(app, api_key=api_key), drain_seconds=drain_seconds)
    server.run(sockets=[listening])
