"""Judges: every way to fail is retried or named and never averaged in; resume, cache, cost and settings."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fake_judge import fake_judge

from llava.eval.judges import client
from llava.eval.judges.client import Judge, JudgeFailed
from llava.eval.judges.cost import estimate, rough_tokens
from llava.eval.judges.judging import Item, judge_all
from llava.eval.judges.replies import FRACTION, PAIR, UnreadableReply, parse_score, read_fraction, read_pair
from llava.eval.judges.settings import JudgeSettings, settings_of
from llava.eval.judges.wording import messages
from llava.utils import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def items(n: int = 3) -> list[Item]:
    return [Item(key, messages(f"question {key}"), {"id": key + 1, "question_id": key}) for key in range(n)]


def settings(url: str, **changes: Any) -> JudgeSettings:
    return JudgeSettings(**{"model": "judge-1", "base_url": url, "timeout": 5, "retries": 2, **changes})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text().splitlines()]


# ---- ten ways to fail ----

AGAIN = ("timeout", "429", "500", "cut", "bad json", "html", "no choices", "empty", "closed")
SAYS = {
    "timeout": "no reply within 0.5 s",
    "429": "status 429: .*slow down",
    "500": "status 500: .*it broke",
    "cut": "connection to .* failed",
    "bad json": "is no JSON: '{",
    "html": "is no JSON: '<html>",
    "no choices": "no chat completion",
    "empty": "the reply is empty",
    "closed": "connection to .* failed",
    "refusal": "refused: I will not judge",
    "filter": "content filter",
    "400": "status 400: .*too long",
    "wrong format": "the first line is 'Both are good.'; expected two scores",
    "out of range": "the score 11 is out of range",
}
SAID = {"wrong format": "Both are good.", "out of range": "8 11"}


@pytest.mark.parametrize("fault", AGAIN)
def test_a_passing_failure_is_tried_again_and_counted(fault: str, tmp_path: Path) -> None:
    timeout = 0.5 if fault == "timeout" else 5
    with fake_judge(lambda text, before: "8 9\nwell" if before or "1" not in text else fault) as fake:
        outcome = judge_all(
            items(), settings(fake.base_url, timeout=timeout), tmp_path / "r.jsonl", scale=PAIR
        )
    assert outcome.retries == 1 and len(fake.requests) == 4
    assert [one["tuple"] for one in lines(tmp_path / "r.jsonl")] == [[8, 9]] * 3
    assert not outcome.complaint()


@pytest.mark.parametrize("fault", SAYS)
def test_a_lasting_failure_costs_its_question_only(fault: str, tmp_path: Path) -> None:
    planned = SAID.get(fault, fault)
    timeout = 0.5 if fault == "timeout" else 5
    with fake_judge(lambda text, before: planned if "1" in text else "8 9") as fake:
        given = settings(fake.base_url, timeout=timeout, retries=1)
        outcome = judge_all(items(), given, tmp_path / "r.jsonl", scale=PAIR)
        sent = sum("1" in one["messages"][-1]["content"] for one in fake.requests)
        assert sent == (2 if fault in AGAIN or fault in SAID else 1)
        kind = outcome.unreadable if fault in SAID else outcome.failed
        assert list(kind) == [1] and len(outcome.failed) + len(outcome.unreadable) == 1
        assert [one["question_id"] for one in lines(tmp_path / "r.jsonl")] == [0, 2]
        with pytest.raises(UserError, match=SAYS[fault]):
            raise UserError(outcome.complaint())
        # the next run asks this one only
        fake.script = lambda text, before: "5 6"
        n_before = len(fake.requests)
        again = judge_all(items(), given, tmp_path / "r.jsonl", scale=PAIR)
        assert len(fake.requests) == n_before + 1 and again.kept == 2 and not again.complaint()
    assert [one["tuple"] for one in lines(tmp_path / "r.jsonl")] == [[8, 9], [5, 6], [8, 9]]


def test_retry_after_is_kept(tmp_path: Path) -> None:
    with fake_judge(lambda text, before: "8 9" if before else "429", wait="0.4") as fake:
        judge_all(items(1), settings(fake.base_url), tmp_path / "r.jsonl", scale=PAIR)
    assert fake.times[1] - fake.times[0] >= 0.4


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "does not accept the key"),
        ("404", "does not know the judge 'judge-1'.*shut down"),
        ("quota", "account of the judge 'judge-1' is used up"),
        ("500", "the judge answers nothing: status 500"),
    ],
)
def test_what_every_question_will_meet_ends_the_run(fault: str, says: str, tmp_path: Path) -> None:
    with fake_judge(fault) as fake, pytest.raises(UserError, match=says):
        judge_all(items(40), settings(fake.base_url, retries=0, parallel=2), tmp_path / "r.jsonl", scale=PAIR)
    assert len(fake.requests) < 12
    assert not (tmp_path / "r.jsonl").exists() or not lines(tmp_path / "r.jsonl")


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answers nothing: the connection to http://127.0.0.1:9/v1/ failed"):
        judge_all(items(), settings("http://127.0.0.1:9/v1", retries=0), tmp_path / "r.jsonl", scale=PAIR)


def test_a_setting_that_a_model_refuses_is_left_out_and_told(tmp_path: Path) -> None:
    def script(text: str, before: int) -> str:
        asked = fake.requests[-1]
        if "max_tokens" in asked:
            return "no max_tokens"
        return "no temperature" if "temperature" in asked else "8 9"

    with fake_judge(script) as fake:
        outcome = judge_all(items(2), settings(fake.base_url, parallel=1), tmp_path / "r.jsonl", scale=PAIR)
    assert fake.requests[-1]["max_completion_tokens"] == 1024 and len(fake.requests) == 4
    assert not outcome.complaint() and "takes no temperature" in outcome.notes[0]


# ---- what is sent, kept and reused ----


def test_the_request_and_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with fake_judge("8 9\nThe second is better.") as fake:
        given = settings_of(
            {"judge-model": "judge-1", "judge-base-url": fake.base_url, "judge-key-env": "MY_KEY"},
            max_tokens=77,
        )
        judge_all(items(1), given, tmp_path / "r.jsonl", scale=PAIR)
    (sent,) = fake.requests
    assert fake.keys == ["Bearer secret"]
    assert sent["temperature"] == 0 and sent["max_tokens"] == 77 and sent["model"] == "judge-1"
    assert [one["role"] for one in sent["messages"]] == ["system", "user"]
    (line,) = lines(tmp_path / "r.jsonl")
    assert list(line)[:4] == ["id", "question_id", "content", "tuple"]
    assert (line["judge_model"], line["judge_asked"]) == ("judge-1-2026", "judge-1")
    assert "secret" not in (tmp_path / "r.jsonl").read_text()


def test_the_cache_is_by_prompt_and_model(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with fake_judge("8 9") as fake:

        def n_requests(name: str, n: int, model: str) -> int:
            before = len(fake.requests)
            given = settings(fake.base_url, model=model, cache=cache)
            outcome = judge_all(items(n), given, tmp_path / name, scale=PAIR)
            assert len(outcome.lines) == n
            return len(fake.requests) - before

        assert n_requests("a.jsonl", 2, "judge-1") == 2
        assert n_requests("b.jsonl", 3, "judge-1") == 1
        assert n_requests("c.jsonl", 3, "judge-2") == 3
        for file in cache.rglob("*.json"):
            file.write_text("{")
        assert n_requests("d.jsonl", 1, "judge-1") == 1  # damaged: asked again


def test_lines_are_there_while_the_run_goes_on_and_end_in_order(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    seen = []

    def script(text: str, before: int) -> str:
        seen.append(len(lines(output)) if output.exists() else 0)
        return "8 9"

    output.write_text('{"question_id": 2, "tuple": [1, 2]}\n{"question_id": 0, "tup')  # killed in the middle
    with fake_judge(script) as fake:
        outcome = judge_all(items(6), settings(fake.base_url, parallel=1), output, scale=PAIR)
    assert outcome.kept == 1 and len(seen) == 5 and seen[-1] >= 4
    assert [one["question_id"] for one in lines(output)] == list(range(6))
    assert lines(output)[2]["tuple"] == [1, 2]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"question_id": 9, "tuple": [1, 2]}, "judgement of question 9, which is not among"),
        ({"question_id": 0, "tuple": [1, 2], "judge_prompt": "other"}, "made of other answers"),
        ({"question_id": 0, "tuple": [1, 2], "judge_asked": "judge-9"}, "two judges do not mix"),
        ("no object", "line 1 is 'no object'; expected an object"),
    ],
)
def test_reviews_of_something_else_are_left_alone(line: Any, says: str, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    output.write_text(json.dumps(line) + "\n")
    with fake_judge("8 9") as fake, pytest.raises(UserError, match=says):
        judge_all(items(), settings(fake.base_url), output, scale=PAIR)
    assert output.read_text() == json.dumps(line) + "\n" and not fake.requests


def test_a_failed_review_of_the_reference_is_asked_again(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    output.write_text('{"question_id": 0, "content": "?", "tuple": [-1, -1]}\n')
    with fake_judge("8 9") as fake:
        judge_all(items(1), settings(fake.base_url), output, scale=PAIR)
    assert [one["tuple"] for one in lines(output)] == [[8, 9]]


def test_the_cost_is_told_before_the_first_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with fake_judge("8 9") as fake, caplog.at_level(logging.WARNING):
        given = settings(fake.base_url, price_in=2.0, price_out=8.0)
        judge_all(items(), given, tmp_path / "r.jsonl", scale=PAIR, dry_run=True)
        assert not fake.requests
    assert "3 to judge: about" in caplog.text and "at most 3,072 to write, at most $0.02" in caplog.text


def test_tokens_are_counted_roughly() -> None:
    assert rough_tokens("a" * 40) == 10 and rough_tokens("日本語") == 3 and rough_tokens("") == 0
    found = estimate([["a" * 40, "b" * 4]], JudgeSettings("m", price_in=1e6))
    assert (found.tokens_in, found.tokens_out, found.dollars) == (19, 1024, 19.0)


def test_a_judge_that_will_shut_down_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = {"judge-1": {"id": "judge-1", "object": "model", "shutdown_date": "2027-01-14"}}
    with fake_judge("8 9", models=models) as fake:
        outcome = judge_all(items(1), settings(fake.base_url), tmp_path / "r.jsonl", scale=PAIR)
        assert Judge(settings(fake.base_url, model="another")).shutdown_date() is None
    assert "judge-1 shuts down on 2027-01-14" in outcome.notes[0] and outcome.notes[0] in caplog.text


def test_one_question_that_comes_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="question 0 comes twice"):
        judge_all([*items(1), *items(1)], settings("http://a"), tmp_path / "r.jsonl", scale=PAIR)
    with pytest.raises(UserError, match="nothing to judge"):
        judge_all([], settings("http://a"), tmp_path / "r.jsonl", scale=PAIR)


# ---- replies ----


@pytest.mark.parametrize(
    ("reply", "scores"),
    [("8 9", [8, 9]), (" 8.5, 9\nbecause", [8.5, 9]), ("\n8  10\n", [8, 10]), ("0,1", [0, 1])],
)
def test_pairs_that_are_read(reply: str, scores: list[float]) -> None:
    assert read_pair(reply) == scores


@pytest.mark.parametrize(
    "reply", ["8", "8 9 10", "eight nine", "-1 3", "8 11", "8/10 9/10", "nan 3", "inf 1", ""]
)
def test_pairs_that_are_not_guessed(reply: str) -> None:
    with pytest.raises(UnreadableReply):
        read_pair(reply)


def test_fractions() -> None:
    assert [read_fraction(one) for one in ("0.5", "1.0.", " 0\nwhy")] == [0.5, 1.0, 0.0]
    for reply in ("1.1", "-0.1", "five", "", "0.5 of it", "50%"):
        with pytest.raises(UnreadableReply):
            read_fraction(reply)
    assert FRACTION.field == "score"


def test_parse_score_is_the_reference_one() -> None:
    assert parse_score("8, 9") == [-1, -1] and parse_score("8,9\nx") == [8.0, 9.0]
    assert parse_score("1e1 2") == [10.0, 2.0]


# ---- settings ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--judge-model is missing.*there is no default.*shut down"),
        ({"judge-model": "m"}, "needs a key.*OPENAI_API_KEY is not set"),
        (
            {"judge-model": "m", "judge-base-url": "localhost:80"},
            "--judge-base-url is 'localhost:80'.*http://",
        ),
        ({"judge-model": "m", "judge-retries": "x"}, "--judge-retries is 'x'; expected a whole number"),
        (
            {"judge-model": "m", "judge-retries": "-1"},
            "--judge-retries is -1; expected a whole number of at least 0",
        ),
        ({"judge-model": "m", "judge-parallel": "0"}, "--judge-parallel is 0"),
        ({"judge-model": "m", "judge-timeout": "0"}, "--judge-timeout is 0.0; expected seconds"),
        ({"judge-model": "m", "judge-timeout": "nan"}, "--judge-timeout is 'nan'; expected a number"),
        ({"judge-model": "m", "judge-price-in": "-1"}, "--judge-price-in is -1.0; expected 0 or more"),
    ],
)
def test_settings_that_cannot_be_used(options: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Judge(settings_of(options))


def test_the_key_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with fake_judge("401") as fake, pytest.raises(UserError) as caught:
        Judge(settings_of({"judge-model": "m", "judge-base-url": fake.base_url})).ask(messages("a"))
    assert "secret" not in str(caught.value)


def test_failures_carry_their_retries() -> None:
    with fake_judge("500") as fake, pytest.raises(JudgeFailed) as caught:
        Judge(settings(fake.base_url)).ask(messages("a"))
    assert caught.value.retries == 2 and len(fake.requests) == 3
