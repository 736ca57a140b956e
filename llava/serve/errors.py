"""Errors that a server tells its clients: status, words, and the headers that say whether to try again."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import copy_context
from typing import Any

# What an ASGI application is made of.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class WatchedSend:
    """`send` of an ASGI application, which knows whether an answer has begun: no other one can follow.

    ended: its last part was sent as well.
    """

    def __init__(self, send: Send) -> None:
        self._send, self.begun, self.ended = send, False, False

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        self.begun = True
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


# OpenAI's `type` of an error, by status.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ServeError(Exception):
    """An error for a client, in OpenAI's form: {"error": {message, type, param, code}}.

    status: HTTP status. code: one word for programs. param: the field of the request that is at fault.
    retry_after_s: when the client may try again; None says that trying again does not help. The clients of
    OpenAI repeat 408, 409, 429 and 5xx by themselves, unless `x-should-retry` forbids it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """What is sent as JSON, also within a stream."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it: x-should-retry, and how long to wait."""
        headers = {"x-should-retry": "false" if self.retry_after_s is None else "true"}
        if self.retry_after_s is not None:
            headers["retry-after-ms"] = str(max(1, round(self.retry_after_s * 1000)))
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ServeError:
    """Return the error 400 for a request that will never do."""
    return ServeError(400, message, code=code, param=param)


def internal_error() -> ServeError:
    """Return the error 500 for what nobody expected; whoever makes it logs what it was."""
    return ServeError(
        500, "the server failed; its log says why, under the request's id", code="internal_error"
    )


# Of scope["state"]: how an answer that has begun ends when the server is stopped.
LAST_WORDS = "last_words"


def set_last_words(scope: Scope, words: Callable[[ServeError], bytes]) -> None:
    """Say what ends an answer that has begun when a shutdown cuts it off: a whole event or frame of it."""
    context = copy_context()  # the id of the request
    scope.setdefault("state", {})[LAST_WORDS] = lambda error: context.run(words, error)


async def send_json(
    send: Send, status: int, content: Mapping[str, Any], headers: Mapping[str, str], *, close: bool = False
) -> None:
    """Send a whole JSON response from an ASGI middleware; `close` ends the connection after it."""
    data = json.dumps(content).encode()
    sent = {"content-type": "application/json", "content-length": str(len(data)), **headers}
    if close:
        sent["connection"] = "close"
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": data})


async def send_error(send: Send, error: ServeError, *, close: bool = False) -> None:
    """Send an error from an ASGI middleware."""
    await send_json(send, error.status, error.body, error.headers, close=close)


def header_values(scope: Scope, name: str) -> list[str]:
    """Return the values of a request's header, as often as it was sent."""
    wanted = name.encode("latin-1")
    return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]
