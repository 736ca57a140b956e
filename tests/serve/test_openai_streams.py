"""Streams, clients that go away or say nothing, shutdown; on a real socket, with the official client."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from fake_engine import FakeEngine, settings
from running import running, wait_until

from llava.inference.engine import OutOfMemory, QueueFull
from llava.serve.limits import Limits
from llava.serve.openai.app import create_app
from llava.serve.openai.streams import EventStream
from llava.serve.web_server import GuardedProtocol

MODEL = "llava-test"
HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with running(create_app(engine, settings())) as url:
        yield url


def client_of(url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        **{"base_url": f"{url}/v1", "api_key": "none", "timeout": 20, "max_retries": 0, **options}
    )


def connect(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> http.client.HTTPConnection:
    """Send a request and do not wait for what comes."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HI, **fields}


# ---- the official client ----


def test_the_official_client_reads_whole_answers_and_streams(url: str) -> None:
    client = client_of(url)
    whole = client.chat.completions.create(model=MODEL, messages=HI)
    assert whole.choices[0].message.content == "Hello wörld!" and whole._request_id
    assert [one.id for one in client.models.list()] == ["llava-test", "gpt-4o"]
    assert client.models.retrieve("gpt-4o").owned_by == "llava"
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HI, n=2, stream=True, stream_options={"include_usage": True}, logprobs=True
        )
    )
    for index in (0, 1):
        mine = [choice for one in chunks for choice in one.choices if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in mine) == "Hello wörld!"
        assert [one.finish_reason for one in mine if one.finish_reason] == ["stop"]
        spelled = [token.token for one in mine if one.logprobs for token in one.logprobs.content or ()]
        assert spelled == [" Hel", "lo", "bytes:\\xc3", "wörld"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8 and all(one.usage is None for one in chunks[:-1])
    with client.chat.completions.stream(model=MODEL, messages=HI) as stream:
        assert stream.get_final_completion().choices[0].message.content == "Hello wörld!"


def test_the_official_client_reads_responses_and_completions(url: str) -> None:
    client = client_of(url)
    assert client.responses.create(model=MODEL, input="Hi").output_text == "Hello wörld!"
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        kinds = [one.type for one in stream]
        assert stream.get_final_response().output_text == "Hello wörld!"
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds.count("response.output_text.delta") == 4
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert client.completions.create(model=MODEL, prompt="Once").choices[0].text == "Hello wörld!"
    pieces = list(client.completions.create(model=MODEL, prompt=["a", "b"], stream=True))
    assert "".join(one.choices[0].text for one in pieces if one.choices[0].index == 1) == "Hello wörld!"


def test_the_official_client_raises_the_right_classes(url: str, engine: FakeEngine) -> None:
    client = client_of(url)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            model=MODEL, messages=HI, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert bad.value.param == "tools" and bad.value.code == "unsupported_parameter" and bad.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HI)
    engine.refusal = QueueFull(32, 0.05)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=MODEL, messages=HI)


def test_the_official_client_repeats_what_helps_and_nothing_else(url: str, engine: FakeEngine) -> None:
    calls = []
    real = engine.submit_choices

    def submit(*args: Any, **options: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise QueueFull(32, 0.3)
        return real(*args, **options)

    engine.submit_choices = submit  # type: ignore[method-assign]
    client = client_of(url, max_retries=2)
    assert client.chat.completions.create(model=MODEL, messages=HI).choices[0].message.content
    assert len(calls) == 2 and calls[1] - calls[0] >= 0.29
    engine.submit_choices = real  # type: ignore[method-assign]
    engine.refusal = RuntimeError("fault")
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model=MODEL, messages=HI)
    assert failed.value.response.headers["x-should-retry"] == "false"


def test_a_failure_in_the_middle_of_a_stream_is_raised(url: str, engine: FakeEngine) -> None:
    engine.failure = OutOfMemory("the device has too little memory")
    client = client_of(url)
    got = []
    with pytest.raises(openai.APIError, match="too little memory") as failed:
        for one in client.chat.completions.create(model=MODEL, messages=HI, stream=True):
            got += [choice.delta.content for choice in one.choices]
    assert failed.value.code == "out_of_memory" and "Hel" in got
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed" and last.response.error is not None
    assert last.response.error.code == "out_of_memory"


# ---- waiting, leaving ----


def test_a_queued_stream_stays_alive_and_knows_its_place(url: str, engine: FakeEngine) -> None:
    engine.go.clear()
    engine.place = 3
    connection = connect(url, chat_body(stream=True))
    reply = connection.getresponse()
    assert reply.status == 200
    lines = iter(reply.readline, b"")
    waiting = [one for one in (next(lines) for _ in range(8)) if one.startswith(b":")]
    assert b": waiting, place 3\n" in waiting
    engine.go.set()
    rest = list(lines)
    assert b"data: [DONE]\n" in rest
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("state", ["queued", "running"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_client_that_goes_away_ends_its_generation(
    path: str, state: str, stream: bool, url: str, engine: FakeEngine
) -> None:
    engine.endless, engine.pause_s = True, 0.01
    if state == "queued":
        engine.go.clear()
    field = {"/v1/chat/completions": {"messages": HI}, "/v1/completions": {"prompt": "x"}}
    body = {"model": MODEL, "stream": stream, **field.get(path, {"input": "x"})}
    connection = connect(url, body, path)
    deadline = time.monotonic() + 5
    while not engine.asked:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if stream:
        assert connection.getresponse().readline()
    assert not engine.asked[0].ticket.done
    connection.close()
    engine.wait_until_idle()
    assert engine.asked[0].ticket.finish_reason == "cancelled"


def test_a_client_that_leaves_while_its_request_is_taken_leaves_nothing_behind(
    url: str, engine: FakeEngine
) -> None:
    engine.endless, engine.pause_s = True, 0.01
    engine.take.clear()
    connection = connect(url, chat_body())
    wait_until(lambda: engine.arrived)
    connection.close()
    engine.take.set()
    wait_until(lambda: engine.asked)
    engine.wait_until_idle()


def test_a_client_that_does_not_read_is_let_go(
    url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventStream, "write_timeout_s", 0.5)
    engine.endless, engine.words = True, ("x" * 20_000,)
    connection = connect(url, chat_body(stream=True))
    wait_until(lambda: engine.asked)
    engine.wait_until_idle()  # although the connection is open
    connection.close()


# ---- sockets ----


class Impatient(GuardedProtocol):
    head_timeout_s = 0.4


FIRST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    "before, sent",
    [(b"", b""), (b"", b"GET"), (b"", FIRST[:-2]), (FIRST, b"GET"), (FIRST, FIRST[:-2])],
    ids=["silent", "a word", "half a head", "a word after a request", "half a head after a request"],
)
def test_a_half_open_socket_is_closed(before: bytes, sent: bytes, engine: FakeEngine) -> None:
    with (
        running(create_app(engine, settings()), protocol=Impatient) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as client,
    ):
        if before:
            client.sendall(before)
            assert b"200 OK" in client.recv(65536)
        client.sendall(sent)
        rest = b"x"
        while rest:
            try:
                rest = client.recv(65536)
            except ConnectionResetError:
                break


def test_a_head_that_never_ends_is_refused(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nx: ")
        try:
            for _ in range(100):
                client.sendall(b"y" * 10_000)
            reply = client.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            reply = b"HTTP/1.1 431"
    assert reply.startswith(b"HTTP/1.1 431")


def test_a_body_of_200_mb_hears_why(engine: FakeEngine) -> None:
    with running(create_app(engine, settings(limits=Limits(max_body_bytes=1 << 20)))) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        body = iter([bytes(1 << 20)] * 200)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        reply = connection.getresponse()
        assert reply.status == 413 and json.loads(reply.read())["error"]["code"] == "body_too_large"
        connection.close()


def test_a_body_that_drips_is_refused_in_time(engine: FakeEngine) -> None:
    with running(create_app(engine, settings(limits=Limits(body_timeout_s=0.5)))) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert client.recv(65536).startswith(b"HTTP/1.1 408")
        with client_of(url) as good:
            assert good.models.list().data  # others are answered meanwhile and afterwards


def test_an_address_of_a_proxy_is_not_believed(engine: FakeEngine) -> None:
    with running(create_app(engine, settings(limits=Limits(per_minute=60)))) as url:
        codes = []
        for number in range(12):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
            connection.request("GET", "/v1/models", headers={"X-Forwarded-For": f"8.8.8.{number}"})
            codes.append(connection.getresponse().status)
            connection.close()
        assert 429 in codes


# ---- the end ----


def test_a_shutdown_lets_answers_end(engine: FakeEngine) -> None:
    engine.pause_s = 0.2
    got: list[str] = []
    with running(create_app(engine, settings())) as url:

        def ask() -> None:
            stream = client_of(url).chat.completions.create(model=MODEL, messages=HI, stream=True)
            got.extend(one.choices[0].delta.content or "" for one in stream)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: got)
    asking.join(30)
    assert "".join(got) == "Hello wörld!" and engine.closed


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_a_stream_that_a_shutdown_cuts_off_is_told(
    path: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.endless, engine.pause_s = True, 0.01
    asked = {
        "chat/completions": {"messages": HI},
        "completions": {"prompt": "Hi"},
        "responses": {"input": "Hi"},
    }
    with running(create_app(engine, settings()), drain_seconds=1) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        body = json.dumps({"model": MODEL, "stream": True, **asked[path]})
        connection.request("POST", f"/v1/{path}", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        begun = reply.readline()
    last = (begun + reply.read()).decode().rstrip().splitlines()[-1]  # whole: read() raises otherwise
    connection.close()
    engine.wait_until_idle()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert not [one for one in caplog.records if one.exc_info]
