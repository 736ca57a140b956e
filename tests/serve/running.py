"""Servers that run on a socket of this machine, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llava.serve.web_server import GuardedProtocol, bind, make_server, url_of


@contextmanager
def running(app: Any, *, drain_seconds: float = 5, protocol: type = GuardedProtocol) -> Iterator[str]:
    """Serve an application; gives its address."""
    listening = bind("127.0.0.1", 0)
    server = make_server(app, drain_seconds=drain_seconds, protocol=protocol)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join(drain_seconds + 10)
        listening.close()
        assert not thread.is_alive()
