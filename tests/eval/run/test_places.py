"""No file that a program reads is written over: data, answers, results; nothing of them changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava.eval.run.command import main
from llava.utils import UserError

SERVER = ["--base-url", "http://127.0.0.1:9/v1"]  # nothing listens there: what is refused is so before


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    question = {"question_id": 1, "text": "Is fire cold?", "answer": "no"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    answer = {"question_id": 1, "prompt": "Is fire cold?", "text": "No.", "model_id": "m"}
    (tmp_path / "a.jsonl").write_text(json.dumps(answer) + "\n")
    (tmp_path / "rule.json").write_text("{}")
    os.link(tmp_path / "q.jsonl", tmp_path / "hard.jsonl")
    (tmp_path / "soft.jsonl").symlink_to("q.jsonl")
    return tmp_path


def refused(root: Path, words: list[str], named: str) -> None:
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(UserError, match=f"{named}.*would be overwritten; name another file"):
        main(words)
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before


@pytest.mark.parametrize("verb", [["answer", "custom"], ["custom"]])
@pytest.mark.parametrize("answers", ["q.jsonl", "./x/../q.jsonl", "hard.jsonl", "soft.jsonl"])
def test_answers_do_not_take_the_place_of_questions(own: Path, verb: list[str], answers: str) -> None:
    for more in ([], ["--start-over"]):
        words = [*verb, *SERVER, "--question-file", "q.jsonl", "--answers", answers, *more]
        refused(own, words, "--answers is .*, which is --question-file as well")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--output", "q.jsonl"], "--output is q.jsonl, which is --question-file"),
        (["--output", "a.jsonl"], "--output is a.jsonl, which is --answers"),
        (["--submission", "q.jsonl"], "--submission is q.jsonl, which is --question-file"),
        (["--submission", "a.result.json"], "--submission is a.result.json, which is --output"),
        (["--rule", "rule.json", "--output", "rule.json"], "--output is rule.json, which is --rule"),
        (["--reviews", "a.jsonl"], "is a.jsonl, which is --(answers|reviews)"),
    ],
)
def test_a_result_does_not_take_the_place_of_what_is_scored(own: Path, flags: list[str], named: str) -> None:
    files = ["--question-file", "q.jsonl", "--answers", "a.jsonl"]
    refused(own, ["score", "custom", *files, *flags], named)
    refused(own, ["custom", *SERVER, *files, *flags], named)


def test_the_grades_beside_a_result_are_no_answers(own: Path) -> None:
    (own / "r.graded.jsonl").write_bytes((own / "a.jsonl").read_bytes())
    words = ["score", "custom", "--question-file", "q.jsonl", "--answers", "r.graded.jsonl"]
    refused(own, [*words, "--output", "r.result.json"], "the grades beside --output")


@pytest.mark.parametrize("place", ["a.jsonl", "a.result.json", "a.graded.jsonl"])
def test_a_comparison_does_not_take_the_place_of_what_is_compared(own: Path, place: str) -> None:
    main(["score", "custom", "--question-file", "q.jsonl", "--answers", "a.jsonl"])
    for flag in ("--html", "--output"):
        refused(own, ["compare", "a.jsonl", "a.jsonl", flag, place], f"{flag} is {place}, which is the")
    refused(own, ["compare", "a.jsonl", "a.jsonl", "--html", "new", "--output", "new"], "--html is new")
