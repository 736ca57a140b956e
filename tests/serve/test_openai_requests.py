"""What chats are taken, refused and understood as, with an engine that records what it is asked."""

from __future__ import annotations

from typing import Any

import pytest
from asking import MODEL, chat, client_of, data_url, error_of, image, text, user
from fake_engine import FakeEngine
from PIL import Image
from starlette.testclient import TestClient

from llava.conversation import conv_templates
from llava.inference.engine import (
    Dialog,
)

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
        ([user(image(), text("Same?"), image())], "SYSTEM USER: <image>\n<image>\nSame? ASSISTANT:"),
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
        ([{"role": "system", "content": [image()]}, user("Hi")], "messages[0].content[0].image_url.url"),
        (
            [user("Hi"), {"role": "system", "content": [image()]}],
            "messages[1].content[0].image_url.url",
        ),
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
    ("include_stop_str_in_output", True),
    ("skip_special_tokens", False),
    ("allowed_token_ids", [5]),
    ("bad_words", ["x"]),
    ("prompt_logprobs", 0),
    ("truncate_prompt_tokens", 5),
    ("chat_template", "{{ messages }}"),
    ("add_generation_prompt", False),
    ("continue_final_message", True),
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


@pytest.mark.parametrize(
    ("path", "fields", "told"),
    [
        ("chat/completions", {"stop": ["a"] * 17}, "stop: List should have at most 16 items"),
        ("chat/completions", {"stop": 5}, "stop: Input should be a valid string or a valid list"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": None}]},
            "content: Input should be a valid string or a valid list",
        ),
        (
            "chat/completions",
            {"messages": [user({"type": "image_url", "image_url": "x"})]},
            "image_url: Input should be a valid dictionary",
        ),
        ("completions", {"prompt": []}, "prompt: List should have at least 1 item"),
        ("completions", {"prompt": ["a"] * 65}, "prompt: List should have at most 64 items"),
        ("completions", {"prompt": [[5]] * 65}, "prompt: List should have at most 64 items"),
        ("completions", {"prompt": [-200]}, "prompt[0]: Input should be greater than or equal to 0"),
        ("responses", {"input": []}, "input: List should have at least 1 item"),
        ("responses", {"input": 5}, "input: Input should be a valid string or a valid list"),
    ],
)
def test_a_field_of_several_kinds_is_told_what_its_own_kind_lacks(
    path: str, fields: dict, told: str, client: TestClient
) -> None:
    body = {"model": MODEL, **({"messages": [user("Hi")]} if path == "chat/completions" else {}), **fields}
    message = error_of(client.post(f"/v1/{path}", json=body))["message"]
    assert told in message and "instance of" not in message


def test_what_is_no_image_is_named_once(client: TestClient) -> None:
    url = "data:image/png;base64,aGVsbG8gd29ybGQ="
    message = error_of(chat(client, user({"type": "image_url", "image_url": {"url": url}})))["message"]
    assert message.startswith("the image 'messages[0].content[0].image_url.url' is not in an image format")


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
