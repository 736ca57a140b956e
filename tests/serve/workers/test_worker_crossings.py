"""Programs of serving that meet: keys that differ, workers that change, old beside new, clients that go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from asking import text, user
from fake_engine import FakeEngine, settings
from fake_worker import Worker, status
from running import free_port, running
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava.serve import safe_fetch, test_message
from llava.serve.controller import Controller
from llava.serve.errors import ServeError
from llava.serve.guard import guard
from llava.serve.openai.app import create_app, create_app_for
from llava.serve.openai.remote import ControllerModels
from llava.serve.openai.settings import ClientSettings
from llava.serve.safe_fetch import FetchPolicy
from llava.serve.web.asking import Question, Said
from llava.serve.web.remote import ControllerBackend
from llava.serve.workers.controller_app import create_app as controller_app
from llava.utils import UserError

KEY, OTHER = "k" * 16, "o" * 16


class NewWorker(Worker):
    """One that tells the template of its models, as those of this package do."""

    def __init__(self, *models: str, template: str, **more: Any) -> None:
        super().__init__(*models, **more)
        self.template = template

    def status(self) -> dict[str, Any]:
        return {**status(*self.models), "templates": dict.fromkeys(self.models, self.template)}

    async def tell(self, request: Request) -> Response:
        return JSONResponse(self.status())


# ---- two doors to a controller: each gives ("text", answer) or ("error", code) ----


def by_openai(address: str, key: str | None, model: str) -> tuple[str, str]:
    models = ControllerModels(address, api_key=key)
    with running(create_app_for(models, ClientSettings())) as url:
        body = {"model": model, "messages": [user("Hi")]}
        reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()
    if "error" in reply:
        return "error", reply["error"]["code"]
    return "text", reply["choices"][0]["message"]["content"]


def by_page(address: str, key: str | None, model: str) -> tuple[str, str]:
    backend = ControllerBackend(address, api_key=key)

    async def ask() -> str:
        told = [one.text async for one in backend.answer(Question(model, [Said("Hi")]))]
        return told[-1]

    try:
        return "text", asyncio.run(ask())
    except ServeError as error:
        return "error", error.code


DOORS = {"openai": by_openai, "page": by_page}


@contextlib.contextmanager
def controlled(
    worker: Any, *, key: str | None = None, worker_key: str | None = None
) -> Iterator[tuple[str, Controller, str]]:
    """Run a worker and a controller that knows it, each with a key or none."""
    controller = Controller("shortest_queue", api_key=key)
    app = guard(worker.app, api_key=worker_key) if worker_key else worker.app
    with running(app) as at, running(guard(controller_app(lambda: controller), api_key=key)) as address:
        controller.register_worker(at, True, status(*worker.models))
        yield address, controller, at
    controller.close()


# keys of the door, the controller and the worker -> what each door says; "text" is an answer
KEYS = {
    "no keys": ((None, None, None), {"openai": "0 1 2", "page": "0 1 2"}),
    "one key": ((KEY, KEY, KEY), {"openai": "0 1 2", "page": "0 1 2"}),
    "a key too many": ((KEY, None, None), {"openai": "0 1 2", "page": "0 1 2"}),
    "the door has none": ((None, KEY, KEY), {"openai": "controller_refuses", "page": "invalid_api_key"}),
    "the door has another": ((OTHER, KEY, KEY), {"openai": "controller_refuses", "page": "invalid_api_key"}),
    "the controller has none": ((KEY, None, KEY), {"openai": "worker_refuses", "page": "worker_refuses"}),
    "the worker has another": ((KEY, KEY, OTHER), {"openai": "worker_refuses", "page": "worker_refuses"}),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", KEYS)
def test_keys_that_differ_are_told_as_what_they_are(case: str, door: str) -> None:
    (mine, controllers, workers), expected = KEYS[case]
    with controlled(Worker("m"), key=controllers, worker_key=workers) as (address, controller, _):
        kind, said = DOORS[door](address, mine, "m")
        assert said == expected[door] and (kind == "text") is (said == "0 1 2")
        assert controller.list_models() == ["m"]  # a worker that refuses is there


def test_a_worker_that_refuses_is_told_at_the_terminal() -> None:
    with controlled(Worker("m"), worker_key=KEY) as (address, _, _):
        flags = ["--controller", address, "--model-name", "m"]
        with pytest.raises(UserError, match="refuses the request: the API key is missing"):
            test_message.main(test_message.build_parser().parse_args(flags))


@pytest.mark.parametrize("door", DOORS)
def test_a_worker_that_comes_back_with_another_model_answers_for_that_one(door: str) -> None:
    port = free_port()
    controller = Controller("shortest_queue")
    with running(controller_app(lambda: controller)) as address:
        for model in ("first", "second"):
            with running(Worker(model).app, port) as at:
                assert controller.register_worker(at, True, None)
                assert DOORS[door](address, None, model) == ("text", "0 1 2")
                if model == "second":
                    kind, said = DOORS[door](address, None, "first")
                    assert kind == "error" and said in ("no_worker", "model_not_found")
    controller.close()


@pytest.mark.parametrize("door", DOORS)
def test_old_and_new_workers_of_one_model_get_one_template(door: str) -> None:
    """The reference's worker tells no template; the one that the new worker tells holds for both."""
    old, new = Worker("llava-x"), NewWorker("llava-x", template="mistral_instruct")
    controller = Controller("shortest_queue")
    with (
        running(old.app) as one,
        running(new.app) as two,
        running(controller_app(lambda: controller)) as address,
    ):
        controller.register_worker(one, True, None)
        controller.register_worker(two, True, None)
        backend = ControllerBackend(address)
        asyncio.run(backend.models())
        for _ in range(2):
            if door == "openai":
                assert by_openai(address, None, "llava-x")[0] == "text"
            else:
                question = Question("llava-x", [Said("Hi")])

                async def ask(question: Question = question) -> None:
                    async for _ in backend.answer(question):
                        pass

                asyncio.run(ask())
    controller.close()
    prompts = [one["prompt"] for worker in (old, new) for one in worker.params]
    assert len(old.params) == len(new.params) == 1 and prompts[0] == prompts[1]
    assert "[INST] Hi [/INST]" in prompts[0]


def test_one_name_for_two_models_is_told(caplog: pytest.LogCaptureFixture) -> None:
    controller = Controller("shortest_queue")
    one, two = (NewWorker("m", template=key).status() for key in ("llava_v1", "mpt"))
    controller.register_worker("http://localhost:1", True, one)
    controller.register_worker("http://localhost:2", True, one)
    assert "template" not in caplog.text
    controller.register_worker("http://localhost:3", True, two)
    controller.close()
    (told,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "http://localhost:3" in told and "'m'" in told and "mpt" in told and "llava_v1" in told


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_download_of_its_image(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(safe_fetch, "resolve", resolve)
    monkeypatch.setattr(safe_fetch, "is_public", lambda address: True)
    engine = FakeEngine()
    app = create_app(engine, settings(images=FetchPolicy(remote=True, timeout_s=60)))
    with socket.create_server(("127.0.0.1", 0)) as site, running(app) as url:
        site.settimeout(10)
        image = {
            "type": "image_url",
            "image_url": {"url": f"http://example.org:{site.getsockname()[1]}/a.png"},
        }
        body = json.dumps(
            {"model": "llava-test", "messages": [user(image, text("?"))], "stream": stream}
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10)
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        fetched, _ = site.accept()
        fetched.settimeout(10)
        assert fetched.recv(65536).startswith(b"GET /a.png")
        client.close()
        assert fetched.recv(65536) == b""  # long before the time of a download is up
        fetched.close()
    assert not engine.asked
