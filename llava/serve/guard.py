"""What stands in front of every server's application, and how a server is run."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from llava.serve.auth import ApiKey, LocalHosts
from llava.serve.errors import App, Scope
from llava.serve.limits import BodyLimit, HeaderLimit, Limits, RateLimit, RequestIds
from llava.serve.logs import AccessLog, set_up_logging
from llava.utils import UserError

logger = logging.getLogger(__name__)

# How long a server that is stopped waits for the answers that run.
DRAIN_SECONDS = 30


def guard(
    app: App,
    *,
    api_key: str | None,
    limits: Limits | None = None,
    on_end: Callable[[Scope, int, float], None] | None = None,
) -> App:
    """Return an application that only lets through what an operator expects.

    From the outside: an id and a log line for each request, the size of its headers, its key (without one:
    only this machine's names), its client's rate, the size and the time of its body.
    """
    limits = limits or Limits()
    guarded: App = BodyLimit(app, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
    if limits.per_minute is not None:
        guarded = RateLimit(guarded, per_minute=limits.per_minute, free=("/health", "/receive_heart_beat"))
    guarded = LocalHosts(guarded) if api_key is None else ApiKey(guarded, api_key=api_key)
    guarded = HeaderLimit(guarded, max_bytes=limits.max_header_bytes)
    return RequestIds(AccessLog(guarded, on_end=on_end))


def run_server(app: App, *, host: str, port: int, api_key: str | None, limits: Limits | None = None) -> None:
    """Serve an application behind its guard until the process is told to stop; then answers that run end.

    Raises UserError when the address cannot be listened at.
    """
    import uvicorn  # not needed for --help

    set_up_logging("info", secrets=() if api_key is None else (api_key,))
    listening = _listen(host, port)
    config = uvicorn.Config(
        guard(app, api_key=api_key, limits=limits),
        log_config=None,
        access_log=False,  # guard writes it
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
    )
    shown = f"[{host}]" if ":" in host else host
    logger.info("listening at http://%s:%d", shown, listening.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 takes a free one. Raises UserError."""
    if not 0 <= port < 65536:
        raise UserError(f"--port is {port}; expected 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use; choose another with --port") from error
        raise UserError(f"cannot listen at {host}:{port}: {error}") from error
    return found
