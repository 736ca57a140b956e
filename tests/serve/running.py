"""Runs ASGI applications on real sockets of this machine, for tests."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from llava.serve.errors import App
from llava.serve.sockets import bind, url_of
from llava.serve.web_server import GuardedProtocol, make_server


@contextlib.contextmanager
def running(
    app: App, port: int = 0, *, drain_seconds: float = 5, protocol: type[GuardedProtocol] = GuardedProtocol
) -> Iterator[str]:
    """Serve an application from a thread; yields its address."""
    listening = bind("127.0.0.1", port)
    server = make_server(app, drain_seconds=drain_seconds, protocol=protocol)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join(drain_seconds + 10)
        listening.close()
        assert not thread.is_alive()


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something holds; fails the test when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
