"""The HTTP layer itself: what it refuses before or behind an application has the form of OpenAI's errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgi import Reply
from fake_engine import FakeEngine, settings
from running import running, wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from llava.serve.controller import Controller
from llava.serve.errors import App, Receive, Scope, Send, set_last_words
from llava.serve.guard import guard
from llava.serve.openai.app import create_app
from llava.serve.sockets import bind
from llava.serve.web_server import GuardedProtocol, make_server
from llava.serve.workers.base import create_app as worker_app
from llava.serve.workers.controller_app import create_app as controller_app

GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5)


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def check_health(client: socket.socket) -> None:
    """Ask for the server's health over a connection that stays open."""
    client.sendall(GET)
    got = b""
    while not got.endswith(b'{"status":"ok"}'):
        part = client.recv(65536)
        assert part, got
        got += part
    assert got.startswith(b"HTTP/1.1 200")


def exchange(url: str, *sent: bytes) -> Reply:
    """Send bytes and read the one answer until the server closes the connection."""
    with connect(url) as client:
        for one in sent:
            client.sendall(one)
        return parse(read_all(client))


def parse(data: bytes) -> Reply:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert int(pairs["content-length"]) == len(body)  # one answer, whole
    return Reply(int(first.split()[1]), pairs, body)


def check_error(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is an error of the API; return it."""
    assert reply.status == status and reply.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[\w\-]{1,64}", reply.headers["x-request-id"])
    assert set(reply.error) == {"message", "type", "param", "code"} and reply.error["code"] == code
    assert reply.error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert reply.headers["x-should-retry"] == ("true" if "retry-after-ms" in reply.headers else "false")
    return reply.error


# ---- what is no HTTP ----


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(FakeEngine(), settings())) as address:
        yield address


NO_HTTP = {
    "a word": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET[:-2] + b"Host: 127.0.0.1\r\n\r\n", 400),
    "a space in a name": (GET[:-2] + b"a b: c\r\n\r\n", 400),
    "a bad length": (POST + b"Content-Length: 1x\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a bad chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a long head": (GET[:-2] + b"a: " + b"b" * 40_000 + b"\r\n\r\n", 431),
    "a long address": (b"GET /" + b"b" * 40_000, 431),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
}


@pytest.mark.parametrize("case", NO_HTTP)
def test_what_is_no_http_is_told_in_the_form_of_the_api(case: str, url: str) -> None:
    sent, status = NO_HTTP[case]
    reply = exchange(url, sent)
    error = check_error(reply, status, "headers_too_large" if status == 431 else "invalid_http")
    assert reply.headers["connection"] == "close" and len(error["message"]) < 300


def test_what_comes_behind_a_good_request_is_told_as_well(url: str) -> None:
    with connect(url) as client:
        check_health(client)
        client.sendall(b"hello\r\n\r\n")
        check_error(parse(read_all(client)), 400, "invalid_http")


def test_a_body_that_breaks_within_an_answer_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    with running(_with_lifespan(early)) as address, connect(address) as client:
        client.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        got = client.recv(65536)
        client.sendall(b"zz\r\n")
        got += read_all(client)
    assert got.count(b"HTTP/1.1") == 1 and b"200 OK" in got
    assert not [one for one in caplog.records if one.exc_info]


# ---- too many connections ----


class Few(GuardedProtocol):
    max_connections = 2


def test_connections_beyond_the_limit_are_told_to_come_again() -> None:
    with (
        running(create_app(FakeEngine(), settings()), protocol=Few) as address,
        connect(address) as one,
        connect(address) as two,
    ):
        for client in (one, two):
            check_health(client)
        reply = exchange(address, GET)
        check_error(reply, 503, "too_many_connections")
        assert reply.headers["retry-after-ms"] == "1000" and reply.headers["connection"] == "close"
        check_health(one)  # those who were there first are answered


# ---- faults of the application ----


def _with_lifespan(app: App) -> App:
    async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            return await app(scope, receive, send)
        for answer in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{answer}.complete"})

    return with_lifespan


async def _raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("secret detail")


async def _says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    return None


async def _fails(request: Request) -> Response:
    raise KeyError("secret detail")


def _failing() -> Any:
    raise KeyError("secret detail")


FAULTS: dict[str, tuple[Callable[[], App], bytes]] = {
    "an application": (lambda: _with_lifespan(_raises), b"GET /"),
    "behind guards": (lambda: guard(_with_lifespan(_raises), api_key=None), b"GET /"),
    "one that says nothing": (lambda: _with_lifespan(_says_nothing), b"GET /"),
    "a controller": (lambda: guard(controller_app(_failing), api_key=None), b"POST /list_models"),
    "a worker": (lambda: guard(worker_app(_failing), api_key=None), b"POST /worker_get_status"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_an_error_that_escapes_an_application_is_told_without_its_words(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, line = FAULTS[case]
    with running(make()) as address:
        sent = line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        reply = exchange(address, sent)
        check_error(reply, 500, "internal_error")
    assert b"secret" not in reply.body
    told = [one for one in caplog.records if one.levelname == "ERROR"]
    assert len(told) == 1 and reply.headers["x-request-id"] in told[0].getMessage()
    assert case == "one that says nothing" or "secret detail" in caplog.text


def test_an_error_within_an_answer_ends_the_connection() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("secret detail")

    with running(_with_lifespan(half)) as address, connect(address) as client:
        client.sendall(GET)
        got = read_all(client)
    assert got.count(b"HTTP/1.1") == 1 and b"secret" not in got and not got.endswith(b"0\r\n\r\n")


def test_a_request_that_a_shutdown_cuts_off_is_told() -> None:
    begun = threading.Event()
    replies: list[Reply] = []

    async def sleeps(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.sleep(60)

    with running(_with_lifespan(sleeps), drain_seconds=1) as address:
        asking = threading.Thread(target=lambda: replies.append(exchange(address, GET)))
        asking.start()
        assert begun.wait(10)
    asking.join(10)
    check_error(replies[0], 503, "shutting_down")
    assert replies[0].headers["retry-after-ms"]


@pytest.mark.parametrize("words", [None, b"the end"])
def test_an_answer_that_has_begun_ends_with_its_last_words(
    words: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Without any the connection is closed, so that nobody takes half an answer for a whole one."""

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        if words is not None:
            set_last_words(scope, lambda error: words + f" {error.code}".encode())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        begun.set()
        await asyncio.sleep(60)

    def read(address: str) -> None:
        with connect(address) as client:
            client.sendall(GET)
            got.append(read_all(client))

    begun, got = threading.Event(), list[bytes]()
    with running(_with_lifespan(half), drain_seconds=1) as address:
        reading = threading.Thread(target=read, args=(address,))
        reading.start()
        assert begun.wait(10)
    reading.join(10)
    assert b"half" in got[0]
    assert (b"the end shutting_down" in got[0]) is (words is not None)
    assert got[0].endswith(b"0\r\n\r\n") is (words is not None)
    assert not [one for one in caplog.records if one.exc_info]
    assert "cut off" in caplog.text


def test_an_end_that_is_forced_closes_the_application_as_well(caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        closed.set()

    server = make_server(Starlette(lifespan=lifespan), drain_seconds=5)
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        server.should_exit = server.force_exit = True  # as a second Ctrl-C
        thread.join(20)
    assert closed.is_set() and not thread.is_alive()
    assert "Traceback" not in caplog.text


# ---- controllers and workers, whose clients are programs of this protocol ----


@pytest.mark.parametrize("which", ["controller", "worker"])
@pytest.mark.parametrize(
    "line, status, code",
    [(b"POST /no_such_path", 404, "not_found"), (b"GET /worker_get_status", 405, "http_error")],
    ids=["path", "method"],
)
def test_no_server_knows_a_plain_refusal(which: str, line: bytes, status: int, code: str) -> None:
    controller = Controller("shortest_queue")
    app = controller_app(lambda: controller) if which == "controller" else worker_app(_failing)
    with running(guard(app, api_key=None)) as address:
        sent = line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        reply = exchange(address, sent)
    controller.close()
    check_error(reply, status, code)
    assert json.loads(reply.body) and (status == 404 or reply.headers["allow"] == "POST")
