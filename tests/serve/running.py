"""Runs ASGI applications on real sockets of this machine, for tests."""

from __future__ import annotations

import asyncio
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


class Mortal:
    """An application on a real socket that can be killed: connections break off, nobody is told anything."""

    def __init__(self, app: App, port: int = 0) -> None:
        self.listening = bind("127.0.0.1", port)
        self.url = url_of(self.listening)
        self.server = make_server(app, drain_seconds=1)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self.listening])

    def kill(self) -> None:
        """End it as `kill -9` would, as far as its clients see."""
        self.loop.call_soon_threadsafe(self._break_off)
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.listening.close()

    def _break_off(self) -> None:
        for one in self.server.servers:
            one.close()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        self.server.force_exit = self.server.should_exit = True


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
