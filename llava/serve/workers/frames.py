"""The wire format between controller, workers and pages: frames, error codes, and the HTTP client's settings.

A stream is JSON objects, each followed by a zero byte: {"text": prompt and answer so far, "error_code": 0}.
A frame of another code ends the stream; its "text" is for people, and "error" says more to programs (as in
OpenAI's API, see errors.ServeError; older programs pass over it).
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from functools import cache
from typing import Any

import httpx2

from llava.serve.errors import Scope, ServeError, set_last_words
from llava.serve.json_body import parse_json
from llava.serve.limits import request_id
from llava.utils import server_error_msg

DELIMITER = b"\0"
# In a request: a dialog in place of a prompt. In what workers and controllers tell: models that take one.
MESSAGES = "messages"
# How a client names itself to a worker; the reference's programs send the same.
USER_AGENT = {"User-Agent": "LLaVA Client"}

# A worker repeats a frame while a request waits, so that a silence of this length means that it is gone.
CONNECT_TIMEOUT_S = 5.0
STREAM_TIMEOUT_S = 60.0
STATUS_TIMEOUT_S = 5.0
MAX_FRAME_BYTES = 4 * 1024 * 1024


class ErrorCode(IntEnum):
    """Why a stream ended."""

    NONE = 0
    FAILED = 1  # the worker could not answer
    NO_WORKER = 2  # no worker has this model
    WORKER_GONE = 3  # the worker does not answer any more


class FrameError(ValueError):
    """What came over the wire is no frame."""


def frame(text: str, code: ErrorCode = ErrorCode.NONE, **more: object) -> bytes:
    """Return a frame with its delimiter; more: further fields, which older programs pass over."""
    return json.dumps({"text": text, "error_code": int(code), **more}).encode() + DELIMITER


def error_frame(code: ErrorCode, error: ServeError, text: str | None = None, **more: object) -> bytes:
    """Return the frame that ends a stream which failed; its error names the request. more: as in `frame`."""
    content = {
        "text": f"{server_error_msg} ({error.message})" if text is None else text,
        "error_code": int(code),
        "error": {
            **error.body["error"],
            "status": error.status,
            "retry_after_s": error.retry_after_s,
            "request_id": request_id.get(),
        },
        **more,
    }
    return json.dumps(content).encode() + DELIMITER


def end_with_frame(scope: Scope) -> None:
    """Let a shutdown end the stream that answers a request with a frame."""
    set_last_words(scope, lambda error: error_frame(ErrorCode.WORKER_GONE, error))


def read_frames(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the frames of a stream, however its bytes were cut. Raises FrameError."""
    reader = FrameReader()
    for chunk in chunks:
        yield from reader.feed(chunk)
    reader.end()


class FrameReader:
    """Reads the frames of a stream whose bytes come in chunks."""

    def __init__(self) -> None:
        self._waiting = b""

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """Take a chunk; return the frames that are whole now. Raises FrameError."""
        *whole, self._waiting = (self._waiting + chunk).split(DELIMITER)
        if len(self._waiting) > MAX_FRAME_BYTES:
            raise FrameError(f"a frame is longer than {MAX_FRAME_BYTES:,} bytes")
        return [_read_frame(one) for one in whole if one]

    def end(self) -> None:
        """Raise FrameError if the stream ended within a frame."""
        if self._waiting.strip():
            raise FrameError("the stream ended within a frame")


def _read_frame(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise FrameError(f"a frame is not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise FrameError("a frame has no text")
    if not isinstance(found.get("error_code"), int):
        raise FrameError("a frame has no error_code")
    return found


def headers(api_key: str | None) -> dict[str, str]:
    """Return the headers of a request from one of these programs to another."""
    key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return {**USER_AGENT, **key, "x-request-id": request_id.get()}


def open_client(api_key: str | None, *, read_timeout_s: float = STATUS_TIMEOUT_S) -> httpx2.Client:
    """Return a client for requests to other programs of this protocol.

    It follows no redirects and reads no proxy settings: it talks to the address it was given and to no other.
    """
    return httpx2.Client(
        headers=headers(api_key),
        timeout=httpx2.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
        follow_redirects=False,
        trust_env=False,
        verify=tls_context(),
    )


@cache
def tls_context() -> ssl.SSLContext:
    """Return what checks certificates; reading those of all authorities takes 60 ms, which is done once."""
    return httpx2.create_ssl_context(trust_env=False)


def post(url: str, content: Mapping[str, Any] | None = None, *, api_key: str | None = None) -> Any:
    """Send JSON and return the JSON that comes back.

    Raises httpx2.HTTPError, and ValueError for an answer that is no JSON, or more than a request may hold.
    """
    with open_client(api_key) as client:
        response = client.post(url, json=content)
        response.raise_for_status()
        try:
            return parse_json(response.content)
        except ServeError as error:
            raise ValueError(f"the answer cannot be read: {error}") from error
