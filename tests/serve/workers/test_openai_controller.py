"""The server in front of a controller: the same answers as beside the model, and every failure typed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from asking import image, text, user
from fake_worker import Worker
from running import free_port, running, wait_until

from llava.inference.engine import Dialog
from llava.serve import openai_api
from llava.serve.auth import read_api_key
from llava.serve.controller import Controller
from llava.serve.guard import guard
from llava.serve.openai.app import create_app, create_app_for
from llava.serve.openai.launch import served_model
from llava.serve.openai.remote import AnswerText, ControllerModels
from llava.serve.openai.settings import ClientSettings, ServerSettings
from llava.serve.workers import frames
from llava.serve.workers.base import create_app as worker_app
from llava.serve.workers.controller_app import create_app as controller_app
from llava.serve.workers.discovery import Way
from llava.serve.workers.model import ModelWorker
from llava.serve.workers.params import TOO_LONG
from llava.utils import UserError

NAME = "llava-tiny-v1.5"
KEY = read_api_key("correct-horse-battery")


def client_at(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="not needed", max_retries=0, timeout=60)


@contextlib.contextmanager
def front(address: str, **changes: Any) -> Iterator[tuple[openai.OpenAI, ControllerModels]]:
    """Run the server in front of a controller."""
    models = ControllerModels(address, **changes)
    with running(create_app_for(models, ClientSettings())) as url:
        yield client_at(url), models


@contextlib.contextmanager
def behind(*workers: Any) -> Iterator[tuple[openai.OpenAI, ControllerModels, Controller]]:
    """Run fake workers, a controller and the server in front of it."""
    controller = Controller("shortest_queue")
    with contextlib.ExitStack() as stack:
        stack.callback(controller.close)
        for one in workers:
            controller.register_worker(stack.enter_context(running(one.app)), True, None)
        address = stack.enter_context(running(controller_app(lambda: controller)))
        yield (*stack.enter_context(front(address)), controller)


def ask(client: openai.OpenAI, *messages: Any, model: str = NAME, **fields: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 12, **fields}
    return client.chat.completions.create(model=model, messages=list(messages) or [user("Hi")], **settings)


@pytest.fixture(scope="module")
def both(checkpoints: Path) -> Iterator[tuple[openai.OpenAI, openai.OpenAI, ModelWorker]]:
    """A client of the server in front of a controller, and one of a server beside the same engine."""
    path = str(checkpoints / NAME)
    worker = ModelWorker("", "", "id", True, path, None, "kept", device="cpu", limit_model_concurrency=2)
    settings = ServerSettings(served_model(worker.loaded, ["kept"], None, "kept"))
    controller = Controller("shortest_queue")
    with (
        running(worker_app(lambda: worker)) as at,
        running(controller_app(lambda: controller)) as address,
        front(address) as (client, _),
        running(create_app(worker.engine, settings)) as beside,
    ):
        controller.register_worker(at, True, None)
        yield client, client_at(beside), worker
    controller.close()


ASKED = {
    "text": ([user("Hello there")], {}),
    "image": ([user(image(), text("What?"))], {}),
    "images": ([user(image("red"), text("Which?"), image("blue"), text("Say."))], {}),
    "system and a second turn": (
        [
            {"role": "system", "content": "Be brief."},
            user("A"),
            {"role": "assistant", "content": "b"},
            user("C"),
        ],
        {},
    ),
    "several stops": ([user("Hello there")], {"stop": ["a", "e", "i"]}),
    "too many tokens": ([user("Hello")], {"max_tokens": 10**9, "stop": ["e"]}),
}


@pytest.mark.parametrize("case", ASKED)
def test_answers_are_those_of_a_server_beside_the_model(both: Any, case: str) -> None:
    client, beside, _ = both
    messages, fields = ASKED[case]
    expected = ask(beside, *messages, model="kept", **fields)
    whole = ask(client, *messages, model="kept", **fields)
    assert whole.choices[0].message.content == expected.choices[0].message.content
    assert whole.choices[0].finish_reason == expected.choices[0].finish_reason
    assert whole.usage.prompt_tokens == expected.usage.prompt_tokens
    chunks = list(ask(client, *messages, model="kept", stream=True, **fields))
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == expected.choices[0].finish_reason


def test_texts_responses_and_several_choices(both: Any) -> None:
    client, beside, _ = both
    fields: Any = {"model": "kept", "prompt": "Once upon", "max_tokens": 5, "temperature": 0}
    assert (
        client.completions.create(**fields).choices[0].text
        == beside.completions.create(**fields).choices[0].text
    )
    fields = {"model": "kept", "input": "Hello", "max_output_tokens": 5, "temperature": 0}
    ours, theirs = client.responses.create(**fields), beside.responses.create(**fields)
    assert ours.output_text == theirs.output_text and ours.usage.input_tokens == theirs.usage.input_tokens
    assert len({one.index for one in ask(client, model="kept", n=3).choices}) == 3


def test_a_text_and_what_continues_it_joined_are_one_text(both: Any) -> None:
    """No blank between them is lost, and none at the end."""
    client, beside, worker = both
    tokenizer = worker.loaded.tokenizer
    blank = tokenizer.convert_tokens_to_ids("\u2581the")
    fields: Any = {"model": "kept", "prompt": "Hello", "max_tokens": 2, "temperature": 0}
    bias = {"logit_bias": {str(blank): 100}}
    assert beside.completions.create(**fields, **bias).choices[0].text == " the the"
    pieces = beside.completions.create(**fields, **bias, stream=True)
    assert "".join(one.choices[0].text for one in pieces) == " the the"
    told = beside.completions.create(**fields, **bias, logprobs=0).choices[0].logprobs
    assert told.tokens == [" the", " the"] and told.text_offset == [0, 4]
    prompts = [f"{letter} and" for letter in "abcdefghijklmnopqrstuvwxyz"]
    fields = {"model": "kept", "prompt": prompts, "max_tokens": 3, "temperature": 0}
    ours, theirs = (
        [one.text for one in each.completions.create(**fields).choices] for each in (client, beside)
    )
    assert ours == theirs and any(one != one.strip() for one in ours)


def test_models_health_and_numbers(both: Any) -> None:
    client, _, worker = both
    (answer,) = ask(client, model="kept").choices
    assert [one.id for one in client.models.list()] == ["kept"] == [client.models.retrieve("kept").id]
    with httpx2.Client(base_url=str(client.base_url).removesuffix("/v1/")) as plain:
        assert plain.get("/health").status_code == 200
        wait_until(lambda: "llava_engine_running 0.0" in plain.get("/metrics").text)
        numbers = plain.get("/metrics").text
    assert f'llava_engine_requests_total{{reason="{answer.finish_reason}"}}' in numbers
    # the template is that of the checkpoint: the name "kept" suggests another
    assert worker.get_status()["templates"] == {"kept": "llava_v1"}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "logprobs": ("chat", {"logprobs": True}),
    "logprobs of texts": ("completions", {"logprobs": 0}),
    "logit_bias": ("chat", {"logit_bias": {"5": 1}}),
    "seed": ("chat", {"seed": 1}),
    "top_k": ("chat", {"extra_body": {"top_k": 5}}),
    "min_p": ("chat", {"extra_body": {"min_p": 0.1}}),
    "repetition_penalty": ("chat", {"extra_body": {"repetition_penalty": 1.1}}),
    "include": ("responses", {"include": ["message.output_text.logprobs"]}),
    "top_logprobs": ("responses", {"top_logprobs": 2}),
    "prompt": ("completions", {"prompt": [5, 6]}),
    "tools": ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_worker_cannot_do_is_refused_by_name(both: Any, case: str) -> None:
    client, _, _ = both
    kind, fields = REFUSED[case]
    calls: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(model="kept", messages=[user("Hi")], **fields),
        "completions": lambda: client.completions.create(**{"model": "kept", "prompt": "a", **fields}),
        "responses": lambda: client.responses.create(model="kept", input="Hi", **fields),
    }
    with pytest.raises(openai.BadRequestError) as refused:
        calls[kind]()
    name = case.partition(" ")[0]
    assert refused.value.param == name and refused.value.code == "unsupported_parameter"
    assert name in refused.value.message


def test_fields_that_ask_for_nothing_are_no_reason_to_refuse(both: Any) -> None:
    client, _, _ = both
    nothing = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "logit_bias": {}, "logprobs": False}
    assert ask(client, model="kept", extra_body=nothing).choices


# ---- failures ----


class Failing(Worker):
    """A worker whose answers are given frames."""

    def __init__(self, *sent: bytes) -> None:
        super().__init__("m")
        self.sent = sent

    async def frames(self, text: str) -> AsyncIterator[bytes]:
        for one in self.sent:
            yield one.replace(b"PROMPT", json.dumps(text)[1:-1].encode())


def said(error_code: int, words: str = "NETWORK ERROR", **more: Any) -> bytes:
    return json.dumps({"text": words, "error_code": error_code, **more}).encode() + b"\0"


OURS = {"message": "too long", "code": "context_length_exceeded", "status": 400, "param": "images"}
FAILURES: dict[str, tuple[Worker, int, str]] = {
    "a worker's own error": (Failing(said(1, error=OURS)), 400, "context_length_exceeded"),
    "an error of the reference": (Failing(said(1)), 502, "worker_failed"),
    "the reference's controller without worker": (Failing(said(2)), 503, "no_worker"),
    "a worker that died": (Failing(said(0, "PROMPT a"), said(3)), 502, "worker_gone"),
    "too long, as the reference says it": (
        Failing(said(0, "PROMPT" + TOO_LONG)),
        400,
        "context_length_exceeded",
    ),
    "a nonsense status": (Failing(said(1, error={"status": 200, "code": 7})), 502, "7"),
    "no frame": (Failing(b"hello\0"), 503, "controller_gone"),
    "broken off": (Worker("m", n=3, break_after=1), 502, "worker_gone"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", FAILURES)
def test_each_failure_of_a_worker_is_typed(case: str, stream: bool) -> None:
    worker, status, code = FAILURES[case]
    with behind(worker) as (client, models, _), pytest.raises(openai.APIError) as failed:
        answer = ask(client, model="m", stream=stream)
        for _ in answer if stream else ():
            pass
    assert failed.value.code == code
    if isinstance(failed.value, openai.APIStatusError):
        assert failed.value.status_code == status and failed.value.request_id
    assert models.stats().running == 0 and models.stats().requests_total == {"error": 1}
    if "own" in case:
        assert failed.value.param == "messages"


def test_a_worker_of_the_reference_answers_without_usage() -> None:
    worker = Worker("m", n=3)
    with behind(worker) as (client, _, _):
        whole = ask(client, model="m")
        assert whole.choices[0].message.content == "0 1 2" and whole.usage is None
        chunks = list(ask(client, model="m", stream=True, stream_options={"include_usage": True}, stop=["2"]))
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "0 1"
    params = worker.params[0]
    assert params["stop"] == "###" and params["max_new_tokens"] == 12 and params["images"] is None
    assert params["prompt"].endswith("###Human: Hi###Assistant:")  # of a name that suggests nothing else


def test_a_client_that_goes_away_ends_the_workers_answer() -> None:
    worker = Worker("m", n=10_000, wait_s=0.02)
    with behind(worker) as (client, models, _):
        stream = ask(client, model="m", stream=True)
        assert next(one for one in stream if one.choices[0].delta.content)  # the worker is at it
        stream.response.close()
        assert worker.left_early.wait(20)
        wait_until(lambda: models.stats().running == 0)
    assert models.stats().requests_total == {"cancelled": 1}


def test_a_stop_string_ends_the_workers_answer() -> None:
    worker = Worker("m", n=10_000, wait_s=0.01)
    with behind(worker) as (client, _, _):
        assert ask(client, model="m", stop=[" 2 3", "7"]).choices[0].message.content == "0 1"
        assert worker.left_early.wait(20)


def test_unknown_models_too_many_streams_and_a_controller_that_comes_late() -> None:
    worker = Worker("m", n=10_000, wait_s=0.02)
    with behind(worker) as (client, models, controller):
        with pytest.raises(openai.NotFoundError, match="expected m"):
            ask(client, model="other")
        models._max_streams = 1
        first = ask(client, model="m", stream=True)
        next(iter(first))
        with pytest.raises(openai.RateLimitError) as full:
            ask(client, model="m")
        assert full.value.code == "queue_full" and "retry-after-ms" in full.value.response.headers
        first.response.close()
        controller.register_worker(
            next(iter(controller.worker_info)), True, {**STATUS, "model_names": ["new"]}
        )
        wait_until(lambda: models.stats().running == 0)
        assert next(iter(ask(client, model="new", stream=True))).model == "new"  # at once
    port = free_port()
    with front(f"http://127.0.0.1:{port}") as (client, _):
        with pytest.raises(openai.InternalServerError) as gone:
            client.models.list()
        assert gone.value.code == "controller_gone" and gone.value.status_code == 503
        assert httpx2.get(str(client.base_url).replace("/v1/", "/health")).status_code == 503
        late = Controller("lottery")
        with running(controller_app(lambda: late), port):
            assert list(client.models.list()) == []
        late.close()


STATUS = {"speed": 1, "queue_length": 0}


def test_a_model_whose_workers_are_away_is_one_to_ask_again() -> None:
    """Clients repeat after a 503 and not after a 404; a name that nobody served stays unknown."""
    worker = Worker("m", n=2)
    with behind(worker) as (client, _, controller):
        assert ask(client, model="m").choices
        controller.worker_info.clear()
        wait_until(lambda: not list(client.models.list()))
        with pytest.raises(openai.InternalServerError, match="no worker has m now") as caught:
            ask(client, model="m")
        assert (caught.value.status_code, caught.value.code) == (503, "no_worker")
        with pytest.raises(openai.NotFoundError, match="not served here"):
            ask(client, model="another")


def test_the_key_goes_on_to_the_controller() -> None:
    controller = Controller("lottery", api_key=KEY)
    worker = Worker("m")
    with (
        running(worker.app) as at,
        running(guard(controller_app(lambda: controller), api_key=KEY)) as address,
    ):
        controller.register_worker(at, True, None)
        with front(address, api_key=KEY) as (client, _):
            assert ask(client, model="m").choices
        with front(address) as (client, _), pytest.raises(openai.InternalServerError) as refused:
            ask(client, model="m")
    assert refused.value.code == "controller_refuses" and refused.value.status_code == 502
    assert all(KEY not in str(one) for one in (refused.value.message, refused.value.body))
    controller.close()


def test_a_request_that_is_cancelled_before_it_began_leaves_nothing() -> None:
    models = ControllerModels(f"http://127.0.0.1:{free_port()}")
    served = models._serve("m", Way("llava_v1", False))
    dialog = Dialog(served.model.template.copy())
    dialog.conversation.append_message(dialog.conversation.roles[0], "Hi")
    dialog.conversation.append_message(dialog.conversation.roles[1], None)
    from llava.inference.sampling import SamplingParams

    async def cancel_early() -> None:
        tickets = await asyncio.to_thread(
            served.engine.submit_choices, dialog, SamplingParams(temperature=0, max_new_tokens=3), n=4
        )
        for one in tickets:
            one.cancel()

    asyncio.run(cancel_early())
    wait_until(lambda: models.stats().running == 0)
    models.close()
    models.close()
    assert sum(models.stats().requests_total.values()) == 4


@pytest.mark.parametrize("cut", [1, 3, 100])
@pytest.mark.parametrize(
    "whole, stops, expected",
    [
        (" Hello  world ", (), "Hello  world"),
        ("Hello###Human: x", ("###",), "Hello"),
        ("a#b##c", ("###",), "a#b##c"),
        ("one two", ("two", "ne"), "o"),
        ("", ("x",), ""),
    ],
)
def test_text_is_cut_at_stops_however_it_comes(
    whole: str, stops: tuple[str, ...], expected: str, cut: int
) -> None:
    answer, told = AnswerText(6, stops, stripped=True), ""
    for end in range(0, len(whole) + cut, cut):
        told += answer.put("prompt" + whole[:end])
        assert expected.startswith(told)
    assert told + answer.end() == expected


def test_a_continued_text_keeps_its_blanks() -> None:
    answer = AnswerText(6, ("#",), stripped=False)
    assert answer.put("prompt the ") + answer.put("prompt the end #") + answer.end() == " the end "


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_frames_that_are_cut_anywhere_are_read(size: int) -> None:
    raw = frames.frame("a\0b") + frames.frame("ü", usage={"prompt_tokens": 1})
    reader, found = frames.FrameReader(), []
    for start in range(0, len(raw), size):
        found += reader.feed(raw[start : start + size])
    reader.end()
    assert [one["text"] for one in found] == ["a\0b", "ü"] and found[1]["usage"] == {"prompt_tokens": 1}


# ---- the program ----


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model-path", "x"], "--model-path and --controller-address were both given"),
        (["--device", "cpu"], "--device is for a model of this process"),
        (["--load-4bit"], "--load-4bit is for a model of this process"),
        (["--served-model-name", "a"], "--served-model-name is for a model of this process"),
        (["--cache-mb", "5"], "--cache-mb is for a model of this process"),
        (["--conv-mode", "nonsense"], "nonsense"),
        (["--max-images", "-1"], "--max-images is -1"),
    ],
)
def test_flags_that_do_not_go_together(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_API_KEY", raising=False)
    with pytest.raises(UserError, match=words):
        openai_api.main(["--controller-address", "http://127.0.0.1:9", "--port", "0", *arguments])
    with pytest.raises(UserError, match="expected http://host:port"):
        openai_api.main(["--controller-address", "localhost:9"])
