"""Settings that an endpoint calls otherwise or does not have are refused; fields are named as sent."""

from __future__ import annotations

import pytest
from asking import MODEL, error_of, user
from fake_engine import FakeEngine
from starlette.testclient import TestClient

# endpoint -> what a request has to have, and settings that it calls otherwise or does not have
ELSEWHERE: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "chat/completions": (
        {"messages": [user("Hi")]},
        {
            "max_output_tokens": 5,
            "max_new_tokens": 5,
            "instructions": "Be brief.",
            "prompt": "x",
            "input": "x",
        },
    ),
    "completions": (
        {"prompt": "x"},
        {"max_completion_tokens": 5, "max_output_tokens": 5, "top_logprobs": 2, "messages": [user("Hi")]},
    ),
    "responses": (
        {"input": "x"},
        {
            **{"max_tokens": 5, "max_completion_tokens": 5, "max_new_tokens": 5, "messages": [user("Hi")]},
            **{"seed": 0, "stop": ["x"], "n": 2, "logprobs": True, "logit_bias": {"5": 1}},
            **{"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2},
        },
    ),
}


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, (_, found) in ELSEWHERE.items() for name in found]
)
def test_a_setting_of_another_endpoint_is_refused_and_named(
    path: str, name: str, client: TestClient, engine: FakeEngine
) -> None:
    needed, others = ELSEWHERE[path]
    error = error_of(client.post(f"/v1/{path}", json={"model": MODEL, **needed, name: others[name]}))
    assert error["param"] == name and error["code"] == "unsupported_parameter" and not engine.asked
    length = {"responses": "max_output_tokens", "completions": "max_tokens"}.get(
        path, "max_completion_tokens"
    )
    assert error["message"].endswith(f"use {length}" if name.startswith("max_") else "leave it out")


def test_a_setting_of_another_endpoint_that_asks_for_nothing_is_taken(client: TestClient) -> None:
    fields = {"n": 1, "logprobs": False, "stop": [], "top_k": -1, "seed": None, "repetition_penalty": 1.0}
    reply = client.post("/v1/responses", json={"model": MODEL, "input": "x", "metadata": {}, **fields})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(("n", "room"), [(1, 40), (8, 33)])
def test_more_prompts_than_there_are_places_are_no_full_queue(
    n: int, room: int, client: TestClient, engine: FakeEngine
) -> None:
    """8 answers run and 32 wait: more would be told to try again for ever."""
    body = {"model": MODEL, "prompt": ["x"] * room, "n": n, "max_tokens": 1}
    assert client.post("/v1/completions", json=body).status_code == 200
    engine.asked.clear()
    error = error_of(client.post("/v1/completions", json={**body, "prompt": ["x"] * (room + 1)}))
    assert error["code"] == "request_too_large" and error["param"] == "prompt"
    assert f"has {room + 1} prompts" in error["message"] and f"at most {room}" in error["message"]
    assert not engine.asked


@pytest.mark.parametrize(
    ("given", "param"),
    [("", "input"), (" ", "input"), ([{"role": "user", "content": ""}], "input[0].content")],
)
def test_an_empty_input_is_named_as_it_was_sent(given: object, param: str, client: TestClient) -> None:
    body = {"model": MODEL, "input": given, "instructions": "Be brief."}
    assert error_of(client.post("/v1/responses", json=body))["param"] == param
