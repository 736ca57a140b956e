"""Calling an ASGI application without a server, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llava.serve.errors import App, Message, Receive, Scope, Send


@dataclass
class Reply:
    """What an application sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body that came."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message.get("body", b"")})


def scope_of(path: str = "/v1/models", headers: Iterable[tuple[str, str]] = (), **changes: Any) -> Scope:
    """Return the scope of a request from 127.0.0.1."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": pairs,
        "client": ("127.0.0.1", 5),
    }
    return {**scope, **changes}


def call(app: App, scope: Scope | None = None, chunks: Iterable[bytes] = (b"",), pause_s: float = 0) -> Reply:
    """Send a request whose body comes in chunks, `pause_s` apart; a client that has no more says nothing."""
    return asyncio.run(call_async(app, scope, chunks, pause_s))


async def call_async(
    app: App, scope: Scope | None = None, chunks: Iterable[bytes] = (b"",), pause_s: float = 0
) -> Reply:
    """See `call`."""
    left = list(chunks)
    sent: list[Message] = []

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(3600)
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of() if scope is None else scope, receive, send)
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], head, b"".join(one.get("body", b"") for one in sent[1:]))
