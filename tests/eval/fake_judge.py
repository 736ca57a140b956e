"""A server in OpenAI's style on this machine that fails on demand, for tests of judges."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What one request meets: a name of FAULTS, or the text of a reply.
Script = Callable[[str, int], str]  # (the user's message, how often it came before)


@dataclass
class FakeJudge:
    """What the server is told to do, and what it was asked. wait: of "429", in seconds."""

    script: Script
    model: str = "judge-1-2026"
    models: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    wait: str = "0.2"
    base_url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def content(self, index: int = -1) -> str:
        """Return the text of the user's message of a request."""
        return str(self.requests[index]["messages"][-1]["content"])


def completion(text: str | None, model: str, **message: object) -> dict[str, Any]:
    """Return the body of a chat completion."""
    finish = message.pop("finish_reason", "stop")
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text, **message},
    }
    return {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeJudge

    def log_message(self, *args: object) -> None:
        """Write nothing."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        found = self.fake.models.get(name)
        self.send(200 if found else 404, found or {"error": {"message": "no such model"}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        with self.fake.lock:
            before = sum(one["messages"][-1]["content"] == text for one in self.fake.requests)
            self.fake.requests.append(asked)
            self.fake.keys.append(self.headers["Authorization"])
            self.fake.times.append(time.monotonic())
        planned = self.fake.script(text, before)
        fault = FAULTS.get(planned)
        if fault:
            fault(self)
        else:
            self.send(200, completion(planned, self.fake.model))

    def send(self, status: int, body: object, kind: str = "application/json", **headers: str) -> None:
        """Send a whole reply."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)


def _error(status: int, message: str, **more: str) -> Callable[[_Handler], None]:
    return lambda handler: handler.send(status, {"error": {"message": message, **more}})


def _sleep(handler: _Handler) -> None:
    time.sleep(1.5)
    handler.send(200, completion("8 9", handler.fake.model))


def _cut(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "1", "choices": [')
    handler.wfile.flush()
    handler.close_connection = True


def _close(handler: _Handler) -> None:
    """Reset the connection without a word."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


FAULTS: dict[str, Callable[[_Handler], None]] = {
    "timeout": _sleep,
    "429": lambda handler: handler.send(
        429, {"error": {"message": "slow down"}}, Retry_After=handler.fake.wait
    ),
    "500": _error(500, "it broke"),
    "cut": _cut,
    "bad json": lambda handler: handler.send(200, '{"choices": [', "application/json"),
    "html": lambda handler: handler.send(200, "<html>a proxy</html>", "text/html"),
    "no choices": lambda handler: handler.send(200, {"choices": []}),
    "empty": lambda handler: handler.send(200, completion(" ", handler.fake.model)),
    "refusal": lambda handler: handler.send(
        200, completion(None, handler.fake.model, refusal="I will not judge this.")
    ),
    "filter": lambda handler: handler.send(
        200, completion(None, handler.fake.model, finish_reason="content_filter")
    ),
    "closed": _close,
    "400": _error(400, "too long a prompt"),
    "401": _error(401, "wrong key"),
    "404": _error(404, "no such model"),
    "quota": _error(429, "no money left", code="insufficient_quota"),
    "no temperature": _error(400, "unsupported value", param="temperature"),
    "no max_tokens": _error(400, "use max_completion_tokens", param="max_tokens"),
}


@contextlib.contextmanager
def fake_judge(script: Script | str, **settings: Any) -> Iterator[FakeJudge]:
    """Run a judge that replies as the script says; a text is the reply to everything."""
    fake = FakeJudge(script if callable(script) else lambda text, before: script, **settings)
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    fake.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
