"""What requests are taken, refused and understood as, with an engine that records what it is asked."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from fake_engine import FakeEngine, settings
from PIL import Image
from starlette.testclient import TestClient

from llava.conversation import conv_templates
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
from llava.serve.openai.app import create_app
from llava.utils import UserError

URL = "http://127.0.0.1"
MODEL = "llava-test"


def client_of(engine: FakeEngine, **changes: Any) -> TestClient:
    return TestClient(create_app(engine, settings(**changes)), base_url=URL)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    return client_of(engine)


def data_url(color: str = "red", size: tuple[int, int] = (5, 4)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image(color: str = "red") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(color)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


def chat(client: TestClient, *messages: dict[str, Any], **fields: Any) -> Any:
    body = {"model": MODEL, "messages": list(messages) or [user("Hi")], **fields}
    return client.post("/v1/chat/completions", json=body)


def error_of(reply: Any, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---- whole answers ----


def test_a_whole_answer_has_the_form_of_openai(client: TestClient, engine: FakeEngine) -> None:
    reply = chat(client)
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello wörld!", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert body["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    (asked,) = engine.asked
    assert asked.params.temperature == 1.0 and asked.params.max_new_tokens == 512  # of the context
    assert asked.top_logprobs is None and asked.logit_bias is None


@pytest.mark.parametrize("reason, said", [("stop", "stop"), ("length", "length"), ("context", "length")])
def test_why_an_answer_ended(reason: str, said: str) -> None:
    reply = chat(client_of(FakeEngine(reason=reason)))
    assert reply.json()["choices"][0]["finish_reason"] == said


def test_several_answers_share_a_prompt(client: TestClient) -> None:
    body = chat(client, n=3).json()
    assert [one["index"] for one in body["choices"]] == [0, 1, 2]
    assert body["usage"]["prompt_tokens"] == 10 and body["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_completion_tokens": 9, "max_tokens": 7}, {"max_new_tokens": 9}),
        ({"max_tokens": 10**9}, {"max_new_tokens": 512}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1e-9}, {"temperature": 0.0}),
        ({"top_p": 0.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5}, {"top_p": 0.5, "top_k": 3}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"seed": 5}, {"seed": 5}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"stop": "END"}, {"stop": ("END",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": None, "seed": None, "temperature": None, "top_p": None}, {"stop": (), "seed": None}),
    ],
)
def test_settings_reach_the_engine(
    fields: dict, expected: dict, client: TestClient, engine: FakeEngine
) -> None:
    assert chat(client, **fields).status_code == 200
    params = engine.asked[0].params
    assert {name: getattr(params, name) for name in expected} == expected


def test_logprobs_are_spelled(client: TestClient, engine: FakeEngine) -> None:
    content = chat(client, logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]["content"]
    assert engine.asked[0].top_logprobs == 3
    assert [one["token"] for one in content] == [" Hel", "lo", "bytes:\\xc3", "wörld"]
    assert content[0]["bytes"] == list(b" Hel") and content[2]["bytes"] == [0xC3]
    assert content[0]["logprob"] == -0.5
    assert [one["logprob"] for one in content[0]["top_logprobs"]] == [-0.5, -1.5, -2.5]
    assert chat(client, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_logit_bias_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    assert chat(client, logit_bias={"5": -100, "7": 2.5}).status_code == 200
    assert engine.asked[0].logit_bias == {5: -100.0, 7: 2.5}


@pytest.mark.parametrize("key", ["100", "-200", "a", "", "1.5", "٣"])
def test_logit_bias_names_ids_of_the_model(key: str, client: TestClient) -> None:
    assert error_of(chat(client, logit_bias={key: 1}))["param"] == "logit_bias"


def test_every_served_name_answers_under_its_own(client: TestClient) -> None:
    reply = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": [user("Hi")]})
    assert reply.json()["model"] == "gpt-4o"
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [one["id"] for one in listed["data"]] == ["llava-test", "gpt-4o"]
    assert client.get("/v1/models/gpt-4o").json()["object"] == "model"
    assert error_of(client.get("/v1/models/other/x"), 404)["code"] == "model_not_found"
    body = {"model": "other", "messages": [user("Hi")]}
    assert error_of(client.post("/v1/chat/completions", json=body), 404)["code"] == "model_not_found"


# ---- dialogs ----


def dialog_of(client: TestClient, engine: FakeEngine, *messages: dict[str, Any]) -> Dialog:
    reply = chat(client, *messages)
    assert reply.status_code == 200, reply.text
    prompt = engine.asked[-1].prompt
    assert isinstance(prompt, Dialog)
    return prompt


@pytest.mark.parametrize(
    "messages, expected",
    [
        ([user("Hi")], "SYSTEM USER: Hi ASSISTANT:"),
        ([user(text("Hi"), text("there"))], "SYSTEM USER: Hi\nthere ASSISTANT:"),
        ([user(image(), text("What?"))], "SYSTEM USER: <image>\nWhat? ASSISTANT:"),
        ([user(text("What?"), image())], "SYSTEM USER: <image>\nWhat? ASSISTANT:"),
        ([user(image(), image(), text("Same?"))], "SYSTEM USER: <image>\n<image>\nSame? ASSISTANT:"),
        (
            [user(image(), text("is a cat."), image(), text("And?"))],
            "SYSTEM USER: <image>\nis a cat.\n<image>\nAnd? ASSISTANT:",
        ),
        ([user(text("First"), image(), text("then?"))], "SYSTEM USER: First\n<image>\nthen? ASSISTANT:"),
        ([user(image(), text("Look at <image> now"))], "SYSTEM USER: Look at <image> now ASSISTANT:"),
        ([user(image())], "SYSTEM USER: <image>\n ASSISTANT:"),
        (
            [
                user(image(), text("A?")),
                {"role": "assistant", "content": "B."},
                user(image("blue"), text("C?")),
            ],
            "SYSTEM USER: <image>\nA? ASSISTANT: B.</s>USER: <image>\nC? ASSISTANT:",
        ),
        ([{"role": "system", "content": "Be brief."}, user("Hi")], "Be brief. USER: Hi ASSISTANT:"),
        (
            [{"role": "developer", "content": [text("Be brief.")]}, user("Hi")],
            "Be brief. USER: Hi ASSISTANT:",
        ),
        (
            [{"role": "system", "content": "A."}, {"role": "developer", "content": "B."}, user("Hi")],
            "A.\nB. USER: Hi ASSISTANT:",
        ),
        (
            [
                user("Hi"),
                {"role": "assistant", "content": "Yes"},
                {"role": "system", "content": "S"},
                user("So?"),
            ],
            "SYSTEM USER: Hi ASSISTANT: Yes</s>USER: S\nSo? ASSISTANT:",
        ),
        ([user("One"), user("Two")], "SYSTEM USER: One\nTwo ASSISTANT:"),
        (
            [user("Hi"), {"role": "assistant", "content": "an <image> token"}, user("So?")],
            "SYSTEM USER: Hi ASSISTANT: an  token</s>USER: So? ASSISTANT:",
        ),
        (
            [
                user("Hi"),
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
                user("So?"),
            ],
            "SYSTEM USER: Hi ASSISTANT: No</s>USER: So? ASSISTANT:",
        ),
        (
            [user("Hi"), {"role": "assistant", "content": ""}, user("So?")],
            "SYSTEM USER: Hi ASSISTANT:  </s>USER: So? ASSISTANT:",
        ),
    ],
)
def test_messages_become_the_models_own_prompt(
    messages: list, expected: str, client: TestClient, engine: FakeEngine
) -> None:
    dialog = dialog_of(client, engine, *messages)
    prompt = dialog.conversation.get_prompt()
    assert prompt.replace(conv_templates["llava_v1"].system, "SYSTEM") == expected
    assert prompt.count("<image>") == len(dialog.images)
    assert not conv_templates["llava_v1"].messages


def test_images_keep_their_order_and_are_decoded(client: TestClient, engine: FakeEngine) -> None:
    dialog = dialog_of(
        client,
        engine,
        user(image("red"), image("lime")),
        {"role": "assistant", "content": "x"},
        user(image("blue")),
    )
    colors = [one.getpixel((0, 0)) for one in dialog.images if isinstance(one, Image.Image)]
    assert colors == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize("detail", ["auto", "low", "high", "original"])
def test_every_detail_is_taken(detail: str, client: TestClient) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(), "detail": detail}}
    assert chat(client, user(part)).status_code == 200


@pytest.mark.parametrize(
    "messages, param",
    [
        ([{"role": "system", "content": "x"}], "messages[0]"),
        ([user("Hi"), {"role": "assistant", "content": "x"}], "messages[1]"),
        ([{"role": "assistant", "content": [image()]}, user("Hi")], "messages[0].content[0].image_url.url"),
        ([{"role": "system", "content": [image()]}, user("Hi")], "messages[0]"),
        ([user("  ")], "messages[0].content"),
        ([user("an <image> that is not there")], "messages[0].content"),
        ([user(image(), text("<image><image>"))], "messages[0].content"),
        (
            [user({"type": "image_url", "image_url": {"url": "/etc/passwd"}})],
            "messages[0].content[0].image_url.url",
        ),
        (
            [user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})],
            "messages[0].content[0].image_url.url",
        ),
        (
            [user({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a"}})],
            "messages[0].content[0].image_url.url",
        ),
        ([user({"type": "image_url", "image_url": {}})], "messages[0].content[0].image_url.url"),
        ([user({"type": "image_url", "image_url": "data:"})], "messages[0].content[0].image_url"),
        ([user({"type": "text"})], "messages[0].content[0].text"),
        ([user({"type": "smell"})], "messages[0].content[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "pirate", "content": "x"}], "messages[0].role"),
        (["Hi"], "messages[0]"),
    ],
)
def test_bad_messages_are_named(messages: list, param: str, client: TestClient, engine: FakeEngine) -> None:
    assert error_of(chat(client, *messages))["param"] == param
    assert not engine.asked


def test_too_many_images_are_refused_before_any_is_decoded(engine: FakeEngine) -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = error_of(chat(client_of(engine, max_images=2), user(broken, broken, broken)))
    assert error["code"] == "too_many_images"


# ---- what cannot be done, and what does no harm ----

TOOL = {"type": "function", "function": {"name": "f"}}
REFUSED = [
    ("tools", [TOOL]),
    ("tool_choice", "required"),
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("modalities", ["text", "audio"]),
    ("web_search_options", {"search_context_size": "low"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("presence_penalty", 0.5),
    ("frequency_penalty", -1),
    ("guided_json", {"type": "object"}),
    ("ignore_eos", True),
]


@pytest.mark.parametrize("name, value", REFUSED)
def test_what_cannot_be_done_is_refused_and_named(name: str, value: object, client: TestClient) -> None:
    error = error_of(chat(client, **{name: value}))
    assert error["param"] == name and name in error["message"] and error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "message, where",
    [
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[1].role"),
        ({"role": "function", "content": "x", "name": "f"}, "messages[1].role"),
        ({"role": "assistant", "content": None, "tool_calls": [TOOL]}, "messages[1].tool_calls"),
        (
            user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
            "messages[1].content[0].type",
        ),
        (user({"type": "file", "file": {"file_id": "x"}}), "messages[1].content[0].type"),
    ],
)
def test_tools_audio_and_files_in_messages_are_named(message: dict, where: str, client: TestClient) -> None:
    error = error_of(chat(client, user("Hi"), message, user("So?")))
    assert error["param"] == where and error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "functions": None},
        {"response_format": {"type": "text"}, "modalities": ["text"], "audio": None},
        {"presence_penalty": 0, "frequency_penalty": 0.0},
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"prompt_cache_key": "x", "safety_identifier": "y", "verbosity": "low", "reasoning_effort": "high"},
        {"parallel_tool_calls": True, "never_heard_of": [1, 2]},
    ],
)
def test_harmless_fields_are_ignored(fields: dict, client: TestClient) -> None:
    assert chat(client, **fields).status_code == 200


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"model": None}, "model"),
    ],
)
def test_bad_fields_are_named(fields: dict, param: str, client: TestClient, engine: FakeEngine) -> None:
    body = {"model": MODEL, "messages": [user("Hi")], **fields}
    error = error_of(client.post("/v1/chat/completions", json=body))
    assert error["param"] in (param, f"{param}.1") and param in error["message"]
    assert not engine.asked


def test_a_missing_field_is_named(client: TestClient) -> None:
    error = error_of(client.post("/v1/chat/completions", json={"model": MODEL}))
    assert error["param"] == "messages" and error["code"] == "missing_required_parameter"


@pytest.mark.parametrize(
    "content, headers, status, code",
    [
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_json"),
        (b'"text"', {}, 400, "invalid_json"),
        (b"", {}, 400, "invalid_json"),
        (b'{"model": NaN}', {}, 400, "invalid_json"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": ""}, 415, "unsupported_media_type"),
        (
            b"{}",
            {"content-type": "multipart/form-data; boundary=" + "x" * 5000},
            415,
            "unsupported_media_type",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_bad_bodies(
    path: str, content: bytes, headers: dict, status: int, code: str, client: TestClient
) -> None:
    headers = {"content-type": "application/json", **headers}
    error = error_of(client.post(path, content=content, headers=headers), status)
    assert error["code"] == code


def test_an_error_shows_no_image(client: TestClient) -> None:
    secret = "QUJD" * 100
    reply = chat(client, user({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{secret}"}}))
    assert "QUJD" not in reply.text and error_of(reply)["code"] == "invalid_image"
    reply = chat(client, user({"type": "image_url", "image_url": {"url": [secret]}}))
    assert "QUJD" not in reply.text and reply.status_code == 400


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
