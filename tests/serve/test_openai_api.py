"""The program with a real model: flags, answers equal to ChatSession's, images, several clients, shutdown."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from asking import client_over, data_url, error_of, text, user
from asking import image as image_part
from PIL import Image
from running import running, wait_until
from warming import python

from llava.inference.chat import ChatSession
from llava.inference.engine import Alone, Engine
from llava.inference.loading import LoadedModel, open_model
from llava.serve import openai_api
from llava.serve.openai import launch
from llava.serve.openai.app import create_app
from llava.serve.openai.launch import served_model
from llava.serve.openai.settings import ServerSettings
from llava.utils import UserError

Served = tuple[LoadedModel, str, openai.OpenAI]

FAMILIES = {
    "llama": ("llava-tiny-v1.5", "llava_v1"),
    "mistral": ("llava-tiny-v1.6-mistral", "mistral_instruct"),
    "mpt": ("llava-tiny-mpt", "mpt"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, checkpoints: Path) -> Iterator[Served]:
    """A family's tiny model in float32, its template, and a client of a server that has it."""
    folder, template = FAMILIES[request.param]
    loaded = open_model(str(checkpoints / folder), device="cpu", dtype="float32")
    engine = Engine(loaded, max_running=4)
    settings = ServerSettings(served_model(loaded, ["tiny"], template, folder))
    with running(create_app(engine, settings)) as url:
        yield loaded, template, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def expected(loaded: LoadedModel, template: str, *questions: tuple[str, list[Any]], **settings: Any) -> str:
    session = ChatSession(loaded.tokenizer, loaded.model, loaded.image_processor, template=template)
    answer = ""
    for question, images in questions:
        answer = session.ask(question, images, temperature=0, **settings)
    return answer


def ask(client: openai.OpenAI, *messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=list(messages), **{"temperature": 0, "max_tokens": 12, **fields}
    )


def test_answers_are_those_of_a_chat_session(served: Served) -> None:
    loaded, template, client = served
    red = Image.open(io.BytesIO(base64.b64decode(data_url("red").partition(",")[2]))).convert("RGB")
    whole = ask(client, user("Hello there"))
    assert whole.choices[0].message.content == expected(
        loaded, template, ("Hello there", []), max_new_tokens=12
    )
    shown = ask(client, user(image_part("red"), text("What?")))
    answer = expected(loaded, template, ("What?", [red]), max_new_tokens=12)
    assert shown.choices[0].message.content == answer
    assert shown.usage.prompt_tokens > whole.usage.prompt_tokens
    pieces = ask(client, user(image_part("red"), text("What?")), stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == answer
    second = ask(
        client,
        user(image_part("red"), text("What?")),
        {"role": "assistant", "content": answer or " "},
        user("And now?"),
    )
    if answer:
        turns = (("What?", [red]), ("And now?", []))
        assert second.choices[0].message.content == expected(loaded, template, *turns, max_new_tokens=12)
    assert second.usage.prompt_tokens_details.cached_tokens > 0


def test_logprobs_seeds_choices_and_bias(served: Served) -> None:
    _, _, client = served
    one = ask(client, user("Hello"), logprobs=True, top_logprobs=2, max_tokens=4)
    for token in one.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2
        assert token.logprob == max(other.logprob for other in token.top_logprobs)  # greedy
    first = ask(client, user("Hello"), n=3, temperature=1, seed=5)
    again = ask(client, user("Hello"), n=3, temperature=1, seed=5)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    biased = ask(client, user("Hello"), logit_bias={"50": 100}, max_tokens=3, logprobs=True)
    assert len({token.token for token in biased.choices[0].logprobs.content}) == 1
    assert biased.choices[0].finish_reason == "length"


def test_prompts_that_are_too_long_and_texts_without_template(
    served: Served,
) -> None:
    _, _, client = served
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, user("word " * 5000))
    assert long.value.code == "context_length_exceeded"
    assert ask(client, user("Hi"), max_tokens=10**9, stop=["e", "a"]).choices[0].finish_reason
    done = client.completions.create(model="tiny", prompt=[[5, 6, 7], [8, 9]], max_tokens=3, temperature=0)
    assert len(done.choices) == 2 and done.usage is not None and done.usage.prompt_tokens == 5
    assert client.responses.create(model="tiny", input="Hi", max_output_tokens=4).status in (
        "completed",
        "incomplete",
    )


def test_many_clients_at_once_get_their_own_answers(
    served: Served,
) -> None:
    loaded, template, client = served
    questions = [f"Question {index} " * (1 + index % 3) for index in range(10)]
    answers: dict[int, str] = {}

    def run(index: int) -> None:
        answers[index] = ask(client, user(questions[index])).choices[0].message.content

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(questions))]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    for index, question in enumerate(questions):
        assert answers[index] == expected(loaded, template, (question, []), max_new_tokens=12)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place_in_the_engine(checkpoints: Path, stream: bool) -> None:
    loaded = open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu", dtype="float32")
    engine = Engine(loaded, max_running=1)
    settings = ServerSettings(served_model(loaded, ["tiny"], "llava_v1", "tiny"))
    body = {
        "model": "tiny",
        "messages": [user("Hi")],
        "max_tokens": 400,
        "stream": stream,
        "logit_bias": {"50": 100},  # no end token
    }
    with running(create_app(engine, settings)) as url:
        for _ in range(3):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
            head = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
            wait_until(lambda: engine.stats().running)
            connection.close()
            wait_until(lambda: not engine.stats().running)
        stats = engine.stats()
        assert stats.waiting == 0 and stats.requests_total["cancelled"] == 3
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert ask(client, user("Hi")).usage.completion_tokens
    assert not engine.alive  # it was closed with the server


def test_an_engine_that_has_ended_is_told(checkpoints: Path) -> None:
    loaded = open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu", dtype="float32")
    engine = Engine(loaded)
    client = client_over(create_app(engine, ServerSettings(served_model(loaded, ["tiny"], None, "tiny"))))
    assert client.get("/health").status_code == 200
    engine.close()
    assert error_of(client.get("/health"), 503)["code"] == "engine_dead"
    body = {"model": "tiny", "messages": [user("Hi")]}
    assert error_of(client.post("/v1/chat/completions", json=body), 503)["code"] == "engine_dead"
    assert "llava_engine_alive 0.0" in client.get("/metrics").text


# ---- the program ----


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "--model-path is missing"),
        (["--model-path", "x", "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in"),
        (["--model-path", "x", "--api-key", "short"], "--api-key"),
        (["--controller-address", "http://x", "--compile"], "--compile is for a model of this process"),
        (["--model-path", "x", "--max-running", "0"], "--max-running is 0"),
        (["--model-path", "x", "--port", "-1"], "--port is -1"),
        (["--model-path", "x", "--max-body-mb", "0"], "--max-body-mb is 0"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_loaded(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_API_KEY", raising=False)
    with pytest.raises(UserError, match=re.escape(words)):
        openai_api.main(arguments)


def test_a_model_that_cannot_be_compiled_is_refused_before_anything_is_served(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "make_server", lambda *_, **__: pytest.fail("it was served"))
    mpt = ["--model-path", str(checkpoints / "llava-tiny-mpt"), "--device", "cpu", "--port", "0"]
    with pytest.raises(UserError, match="llava_mpt cannot be compiled.*omit compile"):
        openai_api.main([*mpt, "--compile"])


def test_the_program_answers_compiled(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is served has a compiled step, which gives the answers of a session; here it is not compiled."""
    fed = []

    class Uncompiled(Alone):
        def __init__(self, model: Any) -> None:
            super().__init__(model, backend=None)

        def feed(self, row: Any) -> Any:
            fed.append(row.length)
            return super().feed(row)

    class Server:
        def run(self, sockets: list[Any]) -> None:
            body = {"messages": [user("Hello")], "temperature": 0, "max_tokens": 6, "model": "tiny"}
            with client_over(served[0]) as client:
                answers.append(client.post("/v1/chat/completions", json=body).json())

    def make_server(app: Any, **_: Any) -> Server:
        served.append(app)
        return Server()

    served: list[Any] = []
    answers: list[Any] = []
    monkeypatch.setattr(launch, "Alone", Uncompiled)
    monkeypatch.setattr(launch, "make_server", make_server)
    model = str(checkpoints / "llava-tiny-v1.5")
    flags = ["--device", "cpu", "--dtype", "float32", "--port", "0", "--served-model-name", "tiny"]
    openai_api.main(["--model-path", model, *flags, "--conv-mode", "llava_v1", "--compile"])
    loaded = open_model(model, device="cpu", dtype="float32")
    wanted = expected(loaded, "llava_v1", ("Hello", []), max_new_tokens=6)
    assert answers[0]["choices"][0]["message"]["content"] == wanted
    assert len(fed) == answers[0]["usage"]["completion_tokens"] - 1 > 0


def test_a_rate_is_limited_where_others_may_ask() -> None:
    parse = openai_api.build_parser().parse_args
    assert openai_api.limits_of(parse([])).per_minute is None
    assert openai_api.limits_of(parse(["--host", "0.0.0.0"])).per_minute == 600
    assert openai_api.limits_of(parse(["--host", "0.0.0.0", "--rate-limit", "0"])).per_minute is None
    assert openai_api.limits_of(parse(["--rate-limit", "5", "--max-body-mb", "2"])).per_minute == 5


def test_other_programs_find_the_application() -> None:
    assert openai_api.create_app is create_app
    assert openai_api.ServerSettings is ServerSettings


@pytest.mark.slow
def test_the_program_serves_under_its_names_and_ends_when_told(checkpoints: Path) -> None:
    command = [python(), "-m", "llava.serve.openai_api", "--model-path"]
    command += [str(checkpoints / "llava-tiny-v1.5"), "--port", "0", "--device", "cpu", "--dtype", "float32"]
    command += ["--served-model-name", "one", "two"]
    environment = {**os.environ, "LLAVA_API_KEY": "correct-horse-battery", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    log, url = [], None
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"serving one, two at (http://\S+/v1)", line):
                url = found[1]
                break
        assert url, "".join(log)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        client = openai.OpenAI(base_url=url, api_key="correct-horse-battery")
        assert [one.id for one in client.models.list()] == ["one", "two"]
        told: Any = [user("Hi, my secret words")]
        assert client.chat.completions.create(model="two", messages=told, max_tokens=3).model == "two"
        process.send_signal(signal.SIGTERM)
        log += process.stderr.readlines()
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    text_of_log = "".join(log)
    assert "POST /v1/chat/completions -> 200" in text_of_log and "Traceback" not in text_of_log
    assert "correct-horse" not in text_of_log and "secret words" not in text_of_log
