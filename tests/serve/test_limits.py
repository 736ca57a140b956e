"""Limits of a server: sizes, slow clients, rates, request ids; and the JSON of a body."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from asgi import call, echo, scope_of

from llava.serve.errors import Receive, Scope, Send, ServeError
from llava.serve.json_body import MAX_DEPTH, MAX_PARTS, parse_json
from llava.serve.limits import BodyLimit, HeaderLimit, RateLimit, RequestIds, request_id


def limited(max_bytes: int = 10, timeout_s: float = 5) -> BodyLimit:
    return BodyLimit(echo, max_bytes=max_bytes, timeout_s=timeout_s)


@pytest.mark.parametrize("chunks", [[b"0123456789"], [b"01234", b"56789"], [b""]])
def test_a_body_within_the_limit_arrives_whole(chunks: list[bytes]) -> None:
    reply = call(limited(), chunks=chunks)
    assert (reply.status, reply.body) == (200, b"".join(chunks))


def test_a_body_beyond_the_limit_is_refused_whatever_its_header_says() -> None:
    for headers in ([("content-length", "3")], [("transfer-encoding", "chunked")]):
        reply = call(limited(), scope_of(headers=headers), [b"01234567", b"890"])
        assert reply.status == 413 and reply.error["code"] == "body_too_large"
        assert reply.headers["connection"] == "close" and reply.headers["x-should-retry"] == "false"


def test_a_body_of_200_mb_is_dropped_as_it_comes() -> None:
    largest = 0

    def chunks() -> Iterator[bytes]:
        yield from (bytes(1 << 20) for _ in range(200))

    class Watched(BodyLimit):
        async def _read(self, receive: Receive) -> bytes | None:
            nonlocal largest
            tracemalloc.start()
            try:
                return await super()._read(receive)
            finally:
                largest = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()

    source = chunks()

    async def run() -> list[int]:
        sent = []

        async def receive() -> dict:
            chunk = next(source, None)
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

        async def send(message: dict) -> None:
            sent.append(message.get("status", 0))

        await Watched(echo, max_bytes=1 << 20, timeout_s=60)(scope_of(), receive, send)
        return sent

    assert asyncio.run(run())[0] == 413
    assert largest < 8 << 20


@pytest.mark.parametrize("chunks", [[b"0"] * 9, []])
def test_a_slow_client_is_refused_in_time(chunks: list[bytes]) -> None:
    reply = call(limited(timeout_s=0.3), chunks=chunks, pause_s=0.1)
    assert reply.status == 408 and reply.error["code"] == "body_timeout"


def test_long_headers_are_refused() -> None:
    app = HeaderLimit(echo, max_bytes=100)
    assert call(app, scope_of(headers=[("a", "b" * 50)])).status == 200
    for scope in (
        scope_of(headers=[("a", "b" * 100)]),
        scope_of(headers=[("a", "b" * 9)] * 10),
        scope_of("/" + "b" * 100),
        scope_of(query_string=b"b" * 100),
    ):
        reply = call(app, scope)
        assert reply.status == 431 and reply.error["code"] == "headers_too_large"


def test_a_client_that_asks_too_often_waits_and_others_do_not() -> None:
    now = [0.0]
    app = RateLimit(echo, per_minute=60, free=("/health",), clock=lambda: now[0])
    assert [call(app).status for _ in range(7)] == [200] * 6 + [429]
    reply = call(app)
    assert reply.error["code"] == "rate_limit_exceeded" and reply.error["type"] == "rate_limit_error"
    assert reply.headers["x-should-retry"] == "true" and reply.headers["retry-after-ms"] == "1000"
    assert call(app, scope_of("/health")).status == 200
    assert call(app, scope_of(client=("10.0.0.1", 1))).status == 200
    now[0] = 1.0
    assert [call(app).status for _ in range(2)] == [200, 429]
    now[0] = 1000.0
    assert [call(app).status for _ in range(7)] == [200] * 6 + [429]


def test_the_list_of_clients_does_not_grow_without_end() -> None:
    app = RateLimit(echo, per_minute=60, max_clients=100)
    for number in range(1000):
        app.take(str(number))
    assert len(app._buckets) == 100


@pytest.mark.parametrize(
    "given, kept", [("abc-1", True), ("a b", False), ("x\r\ny: z", False), ("a" * 65, False)]
)
def test_a_request_id_is_made_or_kept(given: str, kept: bool) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((request_id.get(), scope["state"]["request_id"]))
        await echo(scope, receive, send)

    sent = call(RequestIds(app), scope_of(headers=[("x-request-id", given)])).headers["x-request-id"]
    assert seen == [(sent, sent)]
    assert (sent == given) is kept
    assert kept or sent.startswith("req_")


# ---- JSON ----


@pytest.mark.parametrize(
    "value",
    [{"a": [1, -2.5e3, None, True, 'ä\n"\\\u2028\U0001f600']}, [], "text", 5, {"a": "x" * 1_000_000}],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_is_read(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deep"),
        (b'{"a":' * 100_000, "deep"),
        (b"[" + b"[]," * MAX_PARTS + b"0]", "more than 100,000"),
        (b"[" + b"0," * MAX_PARTS + b"0]", "more than 100,000"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'"\xff"', "not UTF-8"),
        ("[1]".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf[1]", "not valid JSON"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else repr(value[:12]),
)
def test_what_is_not_plain_json_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(ServeError, match=words) as refused:
        parse_json(body)
    assert refused.value.status == 400 and refused.value.code == "invalid_json"
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    "deepest", [b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, b'["[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["]']
)
def test_depth_counts_brackets_and_not_those_in_texts(deepest: bytes) -> None:
    parse_json(deepest)


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 2_000_000, b'"' * 3_000_000, b'"' + b"\\" * 2_000_001])
def test_no_body_makes_the_scan_slow(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises(ServeError):
        parse_json(body)
    assert time.process_time() - began < 30  # by squares it takes hours
