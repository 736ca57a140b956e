"""Failures of the engine, health, numbers, guards, and the endpoints beside chat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asking import MODEL, chat, client_of, data_url, error_of, user
from fake_engine import FakeEngine
from starlette.testclient import TestClient

from llava.inference.engine import (
    Dialog,
    DoesNotFit,
    EngineDead,
    EngineError,
    OutOfMemory,
    PromptTooLong,
    QueueFull,
    RawPrompt,
)
from llava.serve.limits import Limits
from llava.utils import UserError

# ---- what the engine says ----


@pytest.mark.parametrize(
    "failure, status, code, retry_ms",
    [
        (PromptTooLong("the prompt takes 600 positions"), 400, "context_length_exceeded", None),
        (DoesNotFit("it needs 9 GB"), 400, "request_too_large", None),
        (UserError("the template has no place for it"), 400, "invalid_value", None),
        (QueueFull(32, 1.5), 429, "queue_full", 1500),
        (OutOfMemory("the device has too little memory"), 503, "out_of_memory", 2000),
        (EngineDead("the engine was closed"), 503, "engine_dead", None),
        (EngineError("the engine could not"), 500, "engine_error", None),
        (RuntimeError("secret detail"), 500, "internal_error", None),
    ],
)
@pytest.mark.parametrize("when", ["at once", "later"])
def test_failures_of_the_engine_are_typed(
    failure: Exception, status: int, code: str, retry_ms: int | None, when: str
) -> None:
    engine = FakeEngine(refusal=failure if when == "at once" else None, failure=failure)
    client = client_of(engine)
    reply = chat(client)
    error = error_of(reply, status)
    assert error["code"] == code and "secret" not in error["message"]
    assert reply.headers["x-should-retry"] == ("false" if retry_ms is None else "true")
    assert reply.headers.get("retry-after-ms") == (None if retry_ms is None else str(retry_ms))
    engine.refusal = engine.failure = None
    assert chat(client).status_code == 200  # the server goes on


def test_one_failure_of_several_answers_ends_the_others() -> None:
    engine = FakeEngine(endless=True, pause_s=0.01, failure=OutOfMemory("no memory"), fail_after=3)
    assert error_of(chat(client_of(engine), n=2), 503)["code"] == "out_of_memory"
    engine.wait_until_idle()


def test_an_answer_that_was_cut_by_a_shutdown_is_an_error() -> None:
    engine = FakeEngine(reason="cancelled")
    assert error_of(chat(client_of(engine)), 503)["code"] == "engine_dead"


def test_a_fault_of_the_server_has_a_request_id_and_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.serve.openai import app

    async def fail(*_: object) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(app, "create_chat_completion", fail)
    reply = chat(client_of(FakeEngine()))
    assert error_of(reply, 500)["code"] == "internal_error" and "secret" not in reply.text


# ---- health, numbers, other paths ----


def test_health_follows_the_engine(client: TestClient, engine: FakeEngine) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    engine.alive = False
    assert error_of(client.get("/health"), 503)["code"] == "engine_dead"


def test_numbers_for_prometheus(client: TestClient) -> None:
    chat(client)
    chat(client, n=0)
    client.get("/no/such/path")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    lines = set(reply.text.splitlines())
    assert 'llava_http_requests_total{route="/v1/chat/completions",status="200"} 1.0' in lines
    assert 'llava_http_requests_total{route="/v1/chat/completions",status="400"} 1.0' in lines
    assert 'llava_http_requests_total{route="other",status="404"} 1.0' in lines
    assert "llava_time_to_first_token_seconds_count 1.0" in lines
    assert "llava_engine_alive 1.0" in lines and "llava_engine_running 0.0" in lines
    assert 'llava_engine_requests_total{reason="stop"} 3.0' in lines
    assert "llava_engine_prefix_hits_total 0.0" in lines and "llava_engine_tokens_per_second 0.0" in lines


def test_two_servers_of_one_process_count_apart() -> None:
    first, second = client_of(FakeEngine()), client_of(FakeEngine())
    chat(first)
    assert 'route="/v1/chat/completions"' not in second.get("/metrics").text


@pytest.mark.parametrize(
    "method, path, status", [("GET", "/v1/chat/completions", 405), ("GET", "/", 404), ("GET", "/docs", 404)]
)
def test_other_paths_and_methods(method: str, path: str, status: int, client: TestClient) -> None:
    reply = client.request(method, path)
    error_of(reply, status)
    assert status != 405 or reply.headers["allow"] == "POST"


def test_the_engine_is_closed_with_the_server(engine: FakeEngine) -> None:
    with client_of(engine) as client:
        assert client.get("/health").status_code == 200
    assert engine.closed and not engine.alive


# ---- guards ----


@pytest.mark.parametrize(
    "path", ["/v1/models", "/health", "/metrics", "/openapi.json", "/v1/chat/completions", "/x"]
)
def test_the_key_guards_every_endpoint(path: str, engine: FakeEngine) -> None:
    client = client_of(engine, api_key="correct-horse-battery")
    for method in ("GET", "POST"):
        assert error_of(client.request(method, path), 401)["code"] == "invalid_api_key"
    headers = {"Authorization": "Bearer correct-horse-battery"}
    assert client.get(path, headers=headers).status_code in (200, 404, 405)


def test_limits_stand_in_front_of_the_endpoints(engine: FakeEngine) -> None:
    client = client_of(engine, limits=Limits(max_body_bytes=1000, max_header_bytes=2000, per_minute=60))
    assert error_of(chat(client, user("x" * 1000)), 413)["code"] == "body_too_large"
    assert error_of(client.get("/v1/models", headers={"x": "y" * 2000}), 431)["code"] == "headers_too_large"
    replies = [client.get("/v1/models").status_code for _ in range(10)]
    assert replies[0] == 200 and replies[-1] == 429
    assert client.get("/health").status_code == 200
    assert TestClient(client.app, base_url="http://evil.example.org").get("/health").status_code == 403


TOOL = {"type": "function", "function": {"name": "f"}}

# ---- /v1/completions ----


def complete(client: TestClient, prompt: Any, **fields: Any) -> Any:
    return client.post("/v1/completions", json={"model": MODEL, "prompt": prompt, **fields})


@pytest.mark.parametrize(
    "prompt, prompts",
    [
        ("Once", ["Once"]),
        (["a", "b"], ["a", "b"]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_texts_and_ids_are_continued_as_they_stand(
    prompt: Any, prompts: list, client: TestClient, engine: FakeEngine
) -> None:
    body = complete(client, prompt, n=2).json()
    assert body["object"] == "text_completion"
    assert [one["index"] for one in body["choices"]] == list(range(2 * len(prompts)))
    assert {one["text"] for one in body["choices"]} == {"Hello wörld!"}
    asked = [one.prompt.prompt for one in engine.asked[::2] if isinstance(one.prompt, RawPrompt)]
    assert asked == prompts
    assert engine.asked[0].params.max_new_tokens == 16
    assert body["usage"]["prompt_tokens"] == 10 * len(prompts)


def test_logprobs_of_completions(client: TestClient) -> None:
    logprobs = complete(client, "x", logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"][:2] == [" Hel", "lo"] and logprobs["text_offset"][:3] == [0, 4, 6]
    assert logprobs["token_logprobs"][0] == -0.5 and len(logprobs["top_logprobs"][0]) == 2


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        [[]],
        [-200],
        [100],
        [[5], [100]],
        ["a", ""],
        "an <image>",
        [5, "a"],
        None,
        {"a": 1},
        [True],
        ["a"] * 65,
    ],
    ids=repr,
)
def test_bad_prompts_are_refused(prompt: Any, client: TestClient, engine: FakeEngine) -> None:
    assert (error_of(complete(client, prompt))["param"] or "").startswith("prompt")
    assert not engine.asked


@pytest.mark.parametrize("length", [512 * 256, 512 * 256 + 1])
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    length: int, client: TestClient, engine: FakeEngine
) -> None:
    replies = [
        complete(client, "x" * length),
        chat(client, user("x" * length)),
        respond(client, "x" * length),
    ]
    for reply in replies:
        if length > 512 * 256:
            assert error_of(reply)["code"] == "context_length_exceeded"
        else:
            assert reply.status_code == 200
    assert len(engine.asked) == (0 if length > 512 * 256 else 3)


@pytest.mark.parametrize("name, value", [("suffix", "x"), ("echo", True), ("best_of", 2), ("tools", [TOOL])])
def test_what_completions_cannot_do(name: str, value: Any, client: TestClient) -> None:
    assert error_of(complete(client, "x", **{name: value}))["param"] == name


# ---- /v1/responses ----


def respond(client: TestClient, given: Any, **fields: Any) -> Any:
    return client.post("/v1/responses", json={"model": MODEL, "input": given, **fields})


def test_a_response_has_the_form_of_openai(client: TestClient, engine: FakeEngine) -> None:
    parts = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": data_url()}]
    given = [{"role": "user", "content": parts}]
    body = respond(client, given, instructions="Be brief.", max_output_tokens=30, temperature=0.5).json()
    assert body["object"] == "response" and body["status"] == "completed"
    assert body["output"][0]["content"][0]["text"] == "Hello wörld!"
    assert body["usage"]["input_tokens"] == 10 and body["usage"]["total_tokens"] == 14
    prompt = engine.asked[0].prompt
    assert isinstance(prompt, Dialog) and len(prompt.images) == 1
    assert prompt.conversation.get_prompt() == "Be brief. USER: <image>\nWhat? ASSISTANT:"
    assert engine.asked[0].params.max_new_tokens == 30 and engine.asked[0].params.temperature == 0.5


def test_a_response_that_was_cut_says_so() -> None:
    body = respond(client_of(FakeEngine(reason="length")), "Hi").json()
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_dialog_of_responses(client: TestClient, engine: FakeEngine) -> None:
    answer = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "B."}],
    }
    respond(client, [{"role": "user", "content": "A?"}, answer, {"role": "user", "content": "C?"}])
    prompt = engine.asked[0].prompt
    assert isinstance(prompt, Dialog)
    assert prompt.conversation.get_prompt().endswith("USER: A? ASSISTANT: B.</s>USER: C? ASSISTANT:")


def test_logprobs_of_responses(client: TestClient) -> None:
    body = respond(client, "Hi", include=["message.output_text.logprobs"], top_logprobs=1).json()
    logprobs = body["output"][0]["content"][0]["logprobs"]
    assert logprobs[0]["token"] == " Hel" and len(logprobs[0]["top_logprobs"]) == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("tools", [TOOL]),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("text", {"format": {"type": "json_schema", "name": "x", "schema": {}}}),
        ("truncation", "auto"),
        ("prompt", {"id": "p"}),
        ("include", ["file_search_call.results"]),
    ],
)
def test_what_responses_cannot_do(name: str, value: Any, client: TestClient) -> None:
    error = error_of(respond(client, "Hi", **{name: value}))
    assert error["param"] == name and error["code"] == "unsupported_parameter"


def test_harmless_fields_of_responses_are_ignored(client: TestClient) -> None:
    fields = {
        "store": False,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "user": "me",
    }
    assert respond(client, "Hi", **fields).status_code == 200


def test_the_document_describes_what_is_taken(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health"} <= set(
        document["paths"]
    )
    schema = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert schema["n"]["anyOf"][0]["maximum"] == 8
    json.dumps(document)
