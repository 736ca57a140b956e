"""A server with OpenAI's interface that answers as it is told to, and counts requests at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]


class FakeServer:
    """What it was asked, and how many requests it had at a time."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.url = ""


def completion(text: Any, model: str = "fake-1") -> Reply:
    """A reply with an answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {"object": "chat.completion", "model": model, "choices": [choice]}


@contextmanager
def fake_server(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[FakeServer]:
    """Run a server. reply: of a request's body and how often its text has come: a status and a body."""
    state = FakeServer(reply)
    seen: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "fake"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                state.running += 1
                state.most = max(state.most, state.running)
                name = json.dumps(body["messages"])
                seen[name] = seen.get(name, 0) + 1
                times = seen[name]
            try:
                status, content = state.reply(body, times)
            finally:
                with state.lock:
                    state.running -= 1
            self._send(status, content)

        def _send(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            if status == 0:  # hang up
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()
