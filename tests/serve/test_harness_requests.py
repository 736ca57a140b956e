"""What harnesses ask of the server: 32,768 tokens, and judging through this library's own client."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from running import running

from llava.eval.judges.client import Judge
from llava.eval.judges.judging import Item, judge_all
from llava.eval.judges.replies import FRACTION
from llava.eval.judges.settings import JudgeSettings
from llava.eval.judges.wording import messages
from llava.inference.engine import Engine
from llava.inference.loading import open_model
from llava.serve.openai.app import create_app
from llava.serve.openai.launch import served_model
from llava.serve.openai.settings import ServerSettings


@pytest.fixture(scope="module")
def url(checkpoints: Path):  # type: ignore[no-untyped-def]
    """The address of a server with a tiny model."""
    loaded = open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu", dtype="float32")
    settings = ServerSettings(served_model(loaded, ["tiny"], "llava_v1", "llava-tiny-v1.5"))
    with running(create_app(Engine(loaded, max_running=2), settings)) as address:
        yield f"{address}/v1"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_context_holds_are_cut_to_it(url: str, name: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, name: 32768}
    reply = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert 0 < reply.usage.completion_tokens < 32768


def test_our_own_server_can_be_the_judge(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    settings = JudgeSettings("tiny", base_url=url, max_tokens=8, retries=0, timeout=120)
    judge = Judge(settings)
    assert judge.shutdown_date() is None
    first, second = (judge.ask(messages("Grade 4.")) for _ in range(2))
    assert first == second and first.model == "tiny" and first.text  # greedy
    item = Item(1, messages("Grade 4."), {"question_id": 1})
    outcome = judge_all([item], settings, tmp_path / "r.jsonl", scale=FRACTION)
    assert list(outcome.unreadable) == [1]  # random weights grade nothing, and that is said
    assert "expected a number from 0 to 1" in outcome.complaint()
