"""Who answers a page: an engine with a model, a controller with workers; and what stands in front of it."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from asgi import call, echo, scope_of
from fake_worker import Worker
from PIL import Image
from running import free_port, running, wait_until

from llava.conversation import conv_templates
from llava.inference.chat import ChatSession
from llava.inference.engine import Engine
from llava.inference.loading import open_model
from llava.serve.controller import Controller
from llava.serve.errors import ServeError
from llava.serve.guard import PageGuard, guard
from llava.serve.openai.launch import served_model
from llava.serve.web.asking import Progress, Question, Said
from llava.serve.web.guard import BrowserKey, SameOrigin
from llava.serve.web.local import EngineBackend
from llava.serve.web.remote import ControllerBackend
from llava.serve.workers.addresses import WorkerAddresses
from llava.serve.workers.controller_app import create_app

NAME = "llava-tiny-v1.5"
RED = Image.new("RGB", (40, 30), "red")


def collect(answer: AsyncGenerator[Progress, None]) -> list[str]:
    async def read() -> list[str]:
        return [one.text async for one in answer]

    return asyncio.run(read())


def failure_of(answer: AsyncGenerator[Progress, None]) -> ServeError:
    with pytest.raises(ServeError) as failed:
        collect(answer)
    return failed.value


# ---- an engine ----


@pytest.mark.slow
def test_the_page_says_what_the_chat_says(checkpoints: Path) -> None:
    path = str(checkpoints / NAME)
    loaded = open_model(path, None, NAME, device="cpu", dtype="float32")
    chat = ChatSession(loaded, template=conv_templates["llava_v1"])
    first = "".join(chat.ask("What is it?", [RED], temperature=0, max_new_tokens=8))
    second = "".join(chat.ask("Why?", temperature=0, max_new_tokens=8))
    engine = Engine(loaded, max_running=2, max_waiting=2, cache_bytes=2**20)
    try:
        backend = EngineBackend(engine, served_model(loaded, [NAME], "llava_v1", NAME))
        turns = [Said("What is it?", [RED])]
        asked = Question(NAME, turns, temperature=0.0, max_new_tokens=8)
        assert collect(backend.answer(asked))[-1] == first
        asked = Question(
            NAME, [Said("What is it?", [RED], first), Said("Why?")], temperature=0.0, max_new_tokens=8
        )
        assert collect(backend.answer(asked))[-1] == second
        assert failure_of(backend.answer(Question(NAME, [Said("x <image> <image>", [RED])]))).status == 400
    finally:
        engine.close()


# ---- a controller ----


def test_a_worker_answers_through_the_controller() -> None:
    worker = Worker("llava-v1.5-7b", "other", n=3, wait_s=0.01)
    controller = Controller("shortest_queue")
    with running(worker.app) as there, running(create_app(lambda: controller)) as address:
        controller.register_worker(there, False, None)
        backend = ControllerBackend(address + "/")
        assert asyncio.run(backend.models()) == ["llava-v1.5-7b", "other"]
        turns = [Said("Hi", [RED, RED], "Ho <image>"), Said("Why?")]
        found = collect(backend.answer(Question("llava-v1.5-7b", turns, 0.5, 0.6, 70)))
        assert found == ["0", "0 1", "0 1 2"]
    sent = worker.params[-1]
    assert sent["prompt"].endswith("USER: <image>\n<image>\nHi ASSISTANT: Ho </s>USER: Why? ASSISTANT:")
    assert (sent["temperature"], sent["top_p"], sent["max_new_tokens"]) == (0.5, 0.6, 70)
    assert sent["stop"] == "</s>" and len(sent["images"]) == 2
    image = Image.open(io.BytesIO(base64.b64decode(sent["images"][0])))
    assert image.tobytes() == RED.tobytes()
    assert worker.headers[-1]["user-agent"] == "LLaVA Client"


def test_a_worker_that_dies_mid_answer_and_a_model_without_one_are_told() -> None:
    worker = Worker("llava-v1.5-7b", n=5, break_after=2)
    controller = Controller("shortest_queue")
    with running(worker.app) as there, running(create_app(lambda: controller)) as address:
        controller.register_worker(there, False, None)
        backend = ControllerBackend(address)
        assert failure_of(backend.answer(Question("llava-v1.5-7b", [Said("Hi")]))).code == "worker_gone"
        assert failure_of(backend.answer(Question("another", [Said("Hi")]))).code == "no_worker"


def test_a_page_that_is_left_ends_the_answer_of_the_worker() -> None:
    worker = Worker("llava-v1.5-7b", n=1000, wait_s=0.01)
    controller = Controller("shortest_queue")

    async def leave(backend: ControllerBackend) -> None:
        answer = backend.answer(Question("llava-v1.5-7b", [Said("Hi")]))
        await anext(answer)
        await answer.aclose()

    with running(worker.app) as there, running(create_app(lambda: controller)) as address:
        controller.register_worker(there, False, None)
        asyncio.run(leave(ControllerBackend(address)))
        wait_until(worker.left_early.is_set)


def test_a_controller_that_is_not_there_or_wants_a_key_is_told() -> None:
    gone = ControllerBackend(f"http://127.0.0.1:{free_port()}")
    for ask in (lambda: asyncio.run(gone.models()), lambda: collect(gone.answer(Question("m", [Said("")])))):
        with pytest.raises(ServeError) as failed:
            ask()
        assert failed.value.code == "no_controller" and "is it running?" in failed.value.message
    controller = Controller("shortest_queue", addresses=WorkerAddresses(), api_key="a-key-of-tests")
    app = guard(create_app(lambda: controller), api_key="a-key-of-tests")
    with running(app) as address:
        with pytest.raises(ServeError) as failed:
            asyncio.run(ControllerBackend(address).models())
        assert failed.value.code == "invalid_api_key"
        assert asyncio.run(ControllerBackend(address, api_key="a-key-of-tests").models()) == []


# ---- what stands in front ----


def basic(key: str, user: str = "me") -> str:
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


@pytest.mark.parametrize(
    "header, status",
    [
        (basic("a-key-of-tests"), 200),
        (basic("a-key-of-tests", ""), 200),
        ("Bearer a-key-of-tests", 200),
        (basic("a-key-of-test"), 401),
        (basic("", "a-key-of-tests"), 401),
        ("Basic a-key-of-tests", 401),
        ("Basic \xff", 401),
        ("", 401),
    ],
)
def test_a_browser_sends_the_key_as_a_password(header: str, status: int) -> None:
    app = BrowserKey(echo, api_key="a-key-of-tests")
    reply = call(app, scope_of(headers=[("authorization", header)]))
    assert reply.status == status
    assert status == 200 or reply.headers["www-authenticate"].startswith('Basic realm="LLaVA"')


OPENED = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    "method, headers, status",
    [
        ("POST", {}, 200),  # a program
        ("POST", {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8000"}, 200),
        ("GET", {"sec-fetch-site": "none"}, 200),
        ("GET", OPENED, 200),  # a link from elsewhere
        ("POST", OPENED, 403),  # a form from elsewhere
        ("GET", {**OPENED, "sec-fetch-dest": "iframe"}, 403),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("POST", {"sec-fetch-site": "same-site"}, 403),
        ("POST", {"origin": "http://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"origin": "http://127.0.0.1:9000"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_ask(method: str, headers: dict[str, str], status: int) -> None:
    scope = scope_of(headers=[("host", "127.0.0.1:8000"), *headers.items()], method=method)
    assert call(SameOrigin(echo), scope).status == status
    if headers.get("sec-fetch-dest") == "iframe":
        assert call(SameOrigin(echo, embed=True), scope).status == 200


@pytest.mark.parametrize("embed, frames", [(False, "frame-ancestors 'self'"), (True, "frame-ancestors *")])
def test_the_guards_of_a_page_tell_browsers_to_load_nothing_from_elsewhere(embed: bool, frames: str) -> None:
    app = guard(echo, api_key=None, page=PageGuard(embed))
    policy = call(app, scope_of(headers=[("host", "localhost")])).headers["content-security-policy"]
    assert policy.startswith("default-src 'self' data:") and policy.endswith(frames)


def test_reading_a_page_counts_for_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.serve.limits import Limits

    app = guard(echo, api_key=None, limits=Limits(per_minute=10), page=PageGuard())
    ask: Callable[[str], int] = lambda method: (  # noqa: E731
        call(app, scope_of(headers=[("host", "localhost")], method=method)).status
    )
    assert {ask("GET") for _ in range(50)} == {200}
    assert [ask("POST"), ask("POST")] == [200, 429]
