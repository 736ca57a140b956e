"""Dialogs that a worker renders: each client, each kind of template, each controller; and what is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from asking import data_url
from chat_tokenizers import KINDS
from fake_worker import Worker, status
from PIL import Image
from running import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llava.conversation import conv_templates
from llava.inference.chat import ChatSession
from llava.inference.messages import read_messages
from llava.serve import test_message
from llava.serve.controller import Controller, WorkerInfo
from llava.serve.errors import ServeError
from llava.serve.openai.app import create_app_for
from llava.serve.openai.remote import ControllerModels
from llava.serve.openai.settings import ClientSettings
from llava.serve.web.asking import Question, Said
from llava.serve.web.remote import ControllerBackend
from llava.serve.workers.base import create_app as worker_app
from llava.serve.workers.controller_app import create_app as controller_app
from llava.serve.workers.discovery import Way, way_to_ask
from llava.serve.workers.frames import read_frames
from llava.serve.workers.messages import MAX_MESSAGES
from llava.serve.workers.model import ModelWorker
from llava.serve.workers.params import MAX_IMAGES
from llava.utils import UserError

RED = Image.new("RGB", (5, 4), "red")
LONG = 10  # tokens of an answer


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class ReferencesController:
    """A controller that tells the names of models alone, and relays requests as they are."""

    def __init__(self, controller: Controller) -> None:
        inner = controller_app(lambda: controller)
        self.app = Starlette(routes=[Route("/list_models", self.list_models, methods=["POST"])])
        self.app.mount("/", inner)
        self.controller = controller

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"models": self.controller.list_models()})


@contextlib.contextmanager
def controlled(*workers: Any, old: bool = False) -> Iterator[str]:
    """Run applications of workers and a controller that knows them; yields its address."""
    controller = Controller("shortest_queue")
    with contextlib.ExitStack() as stack:
        stack.callback(controller.close)
        for one in workers:
            controller.register_worker(stack.enter_context(running(one)), True, None)
        app = ReferencesController(controller).app if old else controller_app(lambda: controller)
        yield stack.enter_context(running(app))


@pytest.fixture(scope="module")
def kinds(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModelWorker]]:
    """A worker of a named template, and one of the same model with its tokenizer's own."""
    folder = tmp_path_factory.mktemp("templated") / "llava-own"
    shutil.copytree(checkpoints / "llava-tiny-v1.5", folder)
    (folder / "chat_template.jinja").write_text(
        KINDS["llama_2"][0].replace("'user'", "'user' or message.role == 'system'")
    )
    config = json.loads((folder / "config.json").read_text())
    config["mm_vision_tower"] = str(checkpoints / "tiny-clip")
    (folder / "config.json").write_text(json.dumps({**config, "conv_template": "chat_template"}))
    paths = {"named": checkpoints / "llava-tiny-v1.5", "own": folder}
    made = {
        kind: ModelWorker("", "", "id", True, str(path), None, kind, device="cpu")
        for kind, path in paths.items()
    }
    yield made
    for one in made.values():
        one.close()


# ---- every client gets the answer of a chat ----

SYSTEM = {"role": "system", "content": "Be brief."}
# name -> messages as the OpenAI server takes them; "image" is one
ASKED: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "Hello </s> there"}],
    "image": [{"role": "user", "content": ["image", "What is it?"]}],
    "second turn": [
        {"role": "user", "content": ["image", "What is it?"]},
        {"role": "assistant", "content": "A red one."},
        {"role": "user", "content": "Why?"},
    ],
    "system": [SYSTEM, {"role": "user", "content": ["image", "What is it?"]}],
    "no system": [{**SYSTEM, "content": ""}, {"role": "user", "content": "Hello"}],
}


def in_form(messages: list[dict[str, Any]], image: Any) -> list[dict[str, Any]]:
    parts = lambda content: [image if one == "image" else {"type": "text", "text": one} for one in content]  # noqa: E731
    return [
        {**one, "content": one["content"] if isinstance(one["content"], str) else parts(one["content"])}
        for one in messages
    ]


def chat_says(worker: ModelWorker, messages: list[dict[str, Any]]) -> str:
    """Return what ChatSession answers to the last message."""
    loaded = worker.loaded
    session = ChatSession(loaded, template=worker.template)
    said = in_form(messages, {"type": "image", "image": RED})
    dialog = read_messages(said, session.template, loaded.model.config, has_tower=True)
    *before, (_, question), _ = dialog.conversation.messages
    session.conversation.system = dialog.conversation.system
    session.conversation.messages = [list(one) for one in before]
    images = [RED] if "<image>" in question else []
    session.images = [RED] if dialog.images and not images else []
    return session.ask(question, images, temperature=0, max_new_tokens=LONG)


def by_openai(address: str, model: str, messages: list[dict[str, Any]]) -> str:
    image = {"type": "image_url", "image_url": {"url": data_url()}}
    body = {"model": model, "messages": in_form(messages, image), "temperature": 0, "max_tokens": LONG}
    with running(create_app_for(ControllerModels(address), ClientSettings())) as url:
        reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    if "error" in reply:
        raise UserError(reply["error"]["message"])
    return reply["choices"][0]["message"]["content"]


def by_page(address: str, model: str, messages: list[dict[str, Any]]) -> str:
    turns = []
    for one in messages:
        content = one["content"]
        if one["role"] == "assistant":
            turns[-1] = Said(turns[-1].text, turns[-1].images, content)
        elif isinstance(content, str):
            turns.append(Said(content))
        else:
            turns.append(Said(content[-1], [RED]))
    question = Question(model, turns, temperature=0.0, max_new_tokens=LONG)

    async def ask() -> str:
        return [one.text async for one in ControllerBackend(address).answer(question)][-1]

    try:
        return asyncio.run(ask())
    except ServeError as error:
        raise UserError(error.message) from error


CLIENTS = {"openai": by_openai, "page": by_page}


@pytest.mark.parametrize("old", [False, True], ids=["controller", "old controller"])
@pytest.mark.parametrize("kind", ["named", "own"])
@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_gets_the_answer_of_a_chat(
    kinds: dict[str, ModelWorker], client: str, kind: str, old: bool
) -> None:
    worker = kinds[kind]
    with controlled(worker_app(lambda: worker), old=old) as address:
        for case, messages in ASKED.items():
            if client == "page" and "system" in case:  # it has no place for one
                continue
            expected = chat_says(worker, messages)
            assert CLIENTS[client](address, kind, messages) == expected.strip() != "", case


@pytest.mark.parametrize("through", ["controller", "worker"])
@pytest.mark.parametrize("kind", ["named", "own"])
def test_a_message_at_the_terminal_gets_the_answer_of_a_chat(
    kinds: dict[str, ModelWorker], kind: str, through: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = kinds[kind]
    with running(worker_app(lambda: worker)) as at, controlled(worker_app(lambda: worker)) as address:
        where = ["--controller", address] if through == "controller" else ["--worker", at]
        text = {"named": "Hello there", "own": "Hello </s> there"}[kind]  # a prompt is text alone
        flags = [*where, "--message", text, "--max-new-tokens", str(LONG)]
        test_message.main(test_message.build_parser().parse_args(flags))
    prompt = f"{conv_templates[worker.template].system} USER: {text} ASSISTANT: "
    shown = prompt if kind == "named" else f"{text}\n"
    answer = chat_says(worker, [{"role": "user", "content": text}])
    assert capsys.readouterr().out == f"{shown}{answer}\n"


def test_a_text_to_be_continued_is_continued_with_both_templates(kinds: dict[str, ModelWorker]) -> None:
    said = []
    for kind, worker in kinds.items():
        with (
            controlled(worker_app(lambda worker=worker: worker)) as address,
            running(create_app_for(ControllerModels(address), ClientSettings())) as url,
        ):
            body = {"model": kind, "prompt": "Once upon", "max_tokens": LONG, "temperature": 0}
            said.append(
                httpx2.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
            )
    assert said[0] == said[1] != ""


# ---- what is refused ----

USER = {"role": "user", "content": "Hi"}
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "both": ({"messages": [USER], "prompt": "Hi"}, "messages", "prompt and messages both came"),
    "neither": ({}, "prompt", "prompt is missing"),
    "no list": ({"messages": "Hi"}, "messages", "is no list"),
    "empty": ({"messages": []}, "messages", "nothing to answer"),
    "too many": ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages", "at most 2000"),
    "no object": ({"messages": ["Hi"]}, "messages", "messages[0] is no object"),
    "no role": ({"messages": [{"content": "Hi"}]}, "messages", "expected system, user, assistant"),
    "a role of no one": ({"messages": [{**USER, "role": ["user"]}]}, "messages", "has the role"),
    "no content": ({"messages": [USER, {"role": "user"}]}, "messages", "content of messages[1] is no text"),
    "parts": ({"messages": [{**USER, "content": [{"type": "text"}]}]}, "messages", "is no text"),
    "an answer last": ({"messages": [USER, {**USER, "role": "assistant"}]}, "messages", "the last message"),
    "an answer first": ({"messages": [{**USER, "role": "assistant"}, USER]}, "messages", "comes first"),
    "a late system": ({"messages": [USER, SYSTEM, USER]}, "messages", "at the beginning"),
    "an empty question": ({"messages": [{**USER, "content": " "}]}, "messages", "is empty"),
    "a NUL": ({"messages": [{**USER, "content": "a\0"}]}, "messages", "NUL"),
    "no image": ({"messages": [{**USER, "content": "<image> a"}]}, "images", "1 <image> but 0"),
    "no placeholder": ({"messages": [USER], "images": [encoded(RED)]}, "images", "0 <image> but 1"),
    "one in an answer": (
        {"messages": [USER, {"role": "assistant", "content": "<image>"}, USER], "images": [encoded(RED)]},
        "images",
        "0 <image> but 1",
    ),
    "too many images": ({"messages": [USER], "images": ["a"] * (MAX_IMAGES + 1)}, "images", "at most 64"),
    "a broken setting": ({"messages": [USER], "temperature": "hot"}, "temperature", "expected a number"),
    "a number that is none": ({"messages": [USER], "top_p": "nan"}, "top_p", "expected a number"),
    "raw": ({"prompt": "Hi", "raw": "yes"}, "raw", "expected true or false"),
    "an old client's prompt": (
        {"prompt": "USER: Hi ASSISTANT:"},
        "prompt",
        "send messages in place of prompt",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_answered_is_one_sentence(kinds: dict[str, ModelWorker], case: str) -> None:
    params, param, words = BAD[case]
    (only,) = read_frames(kinds["own"].generate_stream_gate({"model": "own", **params}))
    assert only["error_code"] == 1 and only["error"]["status"] == 400
    assert only["error"]["param"] == param and words in only["error"]["message"]
    assert only["error"]["message"] in only["text"] and "\n" not in only["text"]
    assert ("worker_status" in only) is (case == "empty")


def test_a_named_template_is_still_asked_by_prompts(kinds: dict[str, ModelWorker]) -> None:
    params = {"model": "named", "prompt": "USER: Hi ASSISTANT:", "temperature": 0, "max_new_tokens": 2}
    *_, last = read_frames(kinds["named"].generate_stream_gate(params))
    assert last["error_code"] == 0 and last["text"].startswith("USER: Hi ASSISTANT:")


def test_numbers_of_old_clients_may_be_texts(kinds: dict[str, ModelWorker]) -> None:
    params = {"model": "named", "prompt": "USER: Hi ASSISTANT:", "temperature": 0, "max_new_tokens": 2}
    texts = {**params, "temperature": "0", "top_p": "0.7", "max_new_tokens": "2"}
    first, second = (
        list(read_frames(kinds["named"].generate_stream_gate(one)))[-1] for one in (params, texts)
    )
    assert first["text"] == second["text"] and first["error_code"] == second["error_code"] == 0


# ---- old and new together ----


class Telling(Worker):
    """A worker that tells more of its models than the reference's."""

    def __init__(self, *models: str, **told: Any) -> None:
        super().__init__(*models)
        self.told = told

    async def tell(self, request: Request) -> Response:
        return JSONResponse({**status(*self.models), **self.told})


@pytest.mark.parametrize("client", CLIENTS)
def test_an_old_worker_gets_a_prompt(client: str) -> None:
    worker = Worker("llava-v1.5-7b")
    with controlled(worker.app) as address:
        assert CLIENTS[client](address, "llava-v1.5-7b", [USER]) == "0 1 2"
    (params,) = worker.params
    assert "messages" not in params and params["prompt"].endswith("USER: Hi ASSISTANT:")


@pytest.mark.parametrize("client", CLIENTS)
def test_an_old_worker_of_a_tokenizers_template_cannot_be_asked(client: str) -> None:
    worker = Telling("m", templates={"m": "chat_template"})
    with (
        controlled(worker.app) as address,
        pytest.raises(UserError, match="start the model's worker with this"),
    ):
        CLIENTS[client](address, "m", [USER])
    assert worker.params == []


def test_messages_go_to_the_worker_that_takes_them(kinds: dict[str, ModelWorker]) -> None:
    old, new = Worker("named"), kinds["named"]
    with controlled(old.app, worker_app(lambda: new), old.app) as address:
        for _ in range(3):
            assert by_openai(address, "named", ASKED["text"]) == chat_says(new, ASKED["text"]).strip()
    assert old.params == []
    with controlled(old.app) as address:
        reply = httpx2.post(f"{address}/worker_generate_stream", json={"model": "named", "messages": [USER]})
        (only,) = read_frames([reply.content])
    assert only["error_code"] == 2 and "takes messages; send a prompt" in only["error"]["message"]


def test_what_is_told_decides_the_way() -> None:
    told = {"templates": {"a": "llava_v1", "b": "theirs", "c": "chat_template"}, "messages": ["a", "b", 3]}
    assert way_to_ask("a", told) == Way("llava_v1", True)
    assert way_to_ask("b", told) == Way("chat_template", True)  # of the worker's own register
    assert way_to_ask("c", told) == Way("chat_template", False)
    assert way_to_ask("a", told, "mpt") == Way("mpt", False)  # no worker would render with that one
    assert way_to_ask("a", told, "llava_v1") == Way("llava_v1", True)
    assert way_to_ask("a", {"messages": "a", "templates": 3}) == Way("llava_v0", False)
    info = WorkerInfo.of_status({**status("a", "b"), "messages": ["b", "x", {}]}, True)
    assert info.messages == ("b",)
