"""The review scripts of the reference, and its baseline: prompts, lines, and input that cannot be used."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge, fake_judge

from llava.eval import eval_gpt_review, eval_gpt_review_bench, qa_baseline_gpt35
from llava.utils import UserError

QUESTIONS = [
    {"question_id": 3, "image": "001.jpg", "category": "conv", "text": "What is it?"},
    {"question_id": 4, "image": "001.jpg", "category": "detail", "text": "Describe it."},
]
CONTEXT = {
    "bench": [{"id": "001", "image": "001.jpg", "caption": "A red bus."}],
    "visual": [
        {
            "image": "001.jpg",
            "captions": ["A bus.", "It is red."],
            "instances": [
                {"category": "bus", "bbox": [0.1, 0.2, 0.3, 0.4]},
                {"category": "man", "bbox": [0, 0, 1, 1]},
            ],
        }
    ],
}
PROGRAM = {"text": "eval_gpt_review", "bench": "eval_gpt_review_bench", "visual": "eval_gpt_review_visual"}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(side: str, ids: tuple[int, ...] = (3, 4)) -> list[dict[str, Any]]:
    return [{"question_id": one, "text": f"{side} {one}", "answer_id": f"{side}{one}"} for one in ids]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with fake_judge(lambda text, before: "8 9\nboth") as judge:
        yield judge


def words(kind: str, folder: Path, fake: FakeJudge, *more: str, judge: bool = True) -> list[str]:
    """Write all files that are not there yet, and return the command line."""
    made = {"q": QUESTIONS, "a": answers("gpt"), "b": answers("ours"), "c": CONTEXT.get(kind, [])}
    for name, rows in made.items():
        if not (folder / f"{name}.jsonl").exists():
            write(folder / f"{name}.jsonl", rows)
    at = {name: str(folder / f"{name}.jsonl") for name in "qabco"}
    context = ["-c", at["c"]] if kind != "text" else []
    asked = ["--judge-model", "judge-1", "--judge-base-url", fake.base_url] if judge else []
    return ["-q", at["q"], *context, "-a", at["a"], at["b"], "-o", at["o"], *asked, *more]


def run(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, f"llava.eval.{program}", raising=False)
        runpy.run_module(f"llava.eval.{program}", run_name="__main__")


def reviews(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in (folder / "o.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", PROGRAM)
def test_lines_are_the_references(
    kind: str,
    fake: FakeJudge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(PROGRAM[kind], words(kind, tmp_path, fake), monkeypatch)
    found = reviews(tmp_path)
    prefix = "llava_bench_" if kind == "bench" else ""
    assert list(found[0])[:7] == [
        "id", "question_id", "answer1_id", "answer2_id", "category", "content", "tuple"
    ]  # fmt: skip
    assert list(found[0].values())[:7] == [1, 3, "gpt3", "ours3", f"{prefix}conv", "8 9\nboth", [8.0, 9.0]]
    assert found[1]["id"] == 2 and found[1]["category"] == f"{prefix}detail"
    assert "2 judgements in" in capsys.readouterr().out


BEGINNINGS = {
    "text": "",
    "bench": "[Context]\nA red bus.\n\n",
    "visual": "[Context]\nA bus.\nIt is red.\n\nbus: [0.1, 0.2, 0.3, 0.4]\nman: [0, 0, 1, 1]\n\n",
}


@pytest.mark.parametrize("kind", PROGRAM)
def test_prompts_have_the_references_layout(
    kind: str, fake: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "llava_bench_conv" if kind == "bench" else "conv"
    rules = {name: {"role": "Side", "prompt": "Which one?"}, "default": {"role": "Side", "prompt": "Any."}}
    rules[name.replace("conv", "detail")] = rules["default"]
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    run(PROGRAM[kind], words(kind, tmp_path, fake, "-r", str(tmp_path / "rule.json")), monkeypatch)
    sent = next(fake.content(index) for index in range(2) if "What is it?" in fake.content(index))
    assert sent == BEGINNINGS[kind] + (
        "[Question]\nWhat is it?\n\n[Side 1]\ngpt 3\n\n[End of Side 1]\n\n"
        "[Side 2]\nours 3\n\n[End of Side 2]\n\n[System]\nWhich one?\n\n"
    )


def test_a_text_without_a_rule_takes_the_default_one(
    fake: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "q.jsonl", [{**QUESTIONS[0], "category": "fermi"}, {"question_id": 4, "text": "?"}])
    run("eval_gpt_review", words("text", tmp_path, fake), monkeypatch)
    assert all("correct and detailed" in fake.content(index) for index in range(2))


def test_nothing_is_asked_twice_and_a_dry_run_asks_nothing(
    fake: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("eval_gpt_review_bench", words("bench", tmp_path, fake, "--judge-dry-run"), monkeypatch)
    assert not fake.requests and not (tmp_path / "o.jsonl").exists()
    for _ in range(2):
        run("eval_gpt_review_bench", words("bench", tmp_path, fake), monkeypatch)
        assert len(fake.requests) == 2


BAD = {
    "no judge": ("bench", None, None, "--judge-model is missing.*no default"),
    "answers of another set": ("bench", "b", answers("x", (7, 8)), r"lacks answers to 3, 4 \(2 of 2"),
    "one answer too many": ("text", "b", answers("x", (3, 4, 5)), "answers questions that are not asked: 5"),
    "an answer twice": ("text", "a", answers("x", (3, 3)), "answers question 3 twice"),
    "no text": ("text", "a", [{"question_id": 3}], "lacks 'question_id' or 'text'"),
    "a broken line": ("text", "a", "{", "line 1"),
    "no context": ("bench", "c", [{"image": "9.jpg", "caption": "x"}], "about 001.jpg, of which the context"),
    "no caption": ("bench", "c", [{"image": "001.jpg"}], "has no 'caption'"),
    "no boxes": ("visual", "c", [{"image": "001.jpg", "captions": ["x"]}], "no list 'instances'"),
    "no category": ("bench", "q", [{"question_id": 3, "text": "x", "image": "a"}], "has no 'category'"),
    "another category": (
        "bench",
        "q",
        [{**QUESTIONS[0], "category": "odd"}, QUESTIONS[1]],
        "no rule for questions of the category 'llava_bench_odd'; the rules are for",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_input_that_cannot_be_used(
    case: str,
    fake: FakeJudge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, name, rows, says = BAD[case]
    if isinstance(rows, str):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    elif rows is not None:
        write(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(SystemExit) as ended:
        run(PROGRAM[kind], words(kind, tmp_path, fake, judge=case != "no judge"), monkeypatch)
    assert ended.value.code == 2 and not fake.requests
    with pytest.raises(UserError, match=says):
        raise UserError(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("[]", "expected an object"),
        ("{}", "holds no rules"),
        ('{"conv": {"role": "A"}}', "the rule of 'conv' is"),
        ("{", "is no JSON"),
    ],
)
def test_rule_files_that_cannot_be_used(
    rule: str, says: str, fake: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "rule.json").write_text(rule)
    with pytest.raises(SystemExit):
        run(
            "eval_gpt_review",
            words("text", tmp_path, fake, "--rule", str(tmp_path / "rule.json")),
            monkeypatch,
        )
    assert says in capsys.readouterr().err


def test_one_file_of_answers_is_not_enough(
    fake: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words("text", tmp_path, fake)
    del arguments[4]
    with pytest.raises(SystemExit):
        run("eval_gpt_review", arguments, monkeypatch)
    assert "--answer-list names 1 files; expected two" in capsys.readouterr().err


def test_questions_without_a_judgement_end_with_an_error(
    fake: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.script = lambda text, before: "no idea" if "What" in text else "8 9"
    with pytest.raises(SystemExit) as ended:
        run("eval_gpt_review", words("text", tmp_path, fake), monkeypatch)
    told = capsys.readouterr()
    assert ended.value.code == 2 and "1 of 2 questions have no judgement and count nowhere" in told.err
    assert [one["question_id"] for one in reviews(tmp_path)] == [4]


def test_the_baseline_answers_and_resumes(
    fake: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.script = lambda text, before: "400" if text == "Describe it." else f"Re: {text}"
    write(tmp_path / "q.jsonl", QUESTIONS)
    arguments = ["-q", str(tmp_path / "q.jsonl"), "-o", str(tmp_path / "o.jsonl"), "--max-tokens", "9"]
    arguments += ["--judge-model", "judge-1", "--judge-base-url", fake.base_url]
    with pytest.raises(SystemExit) as ended:
        run("qa_baseline_gpt35", arguments, monkeypatch)
    assert (
        ended.value.code == 2 and "1 of 2 questions have no answer, the first is 4" in capsys.readouterr().err
    )
    (line,) = reviews(tmp_path)
    assert list(line) == ["answer_id", "question_id", "model_id", "text"] and len(line["answer_id"]) == 22
    assert (line["question_id"], line["model_id"], line["text"]) == (3, "judge-1-2026", "Re: What is it?")
    fake.script = lambda text, before: "yes"
    run("qa_baseline_gpt35", arguments, monkeypatch)
    assert [one["text"] for one in reviews(tmp_path)] == ["Re: What is it?", "yes"]
    assert fake.requests[0]["max_tokens"] == 9 and len(fake.requests) == 3


def test_functions_of_the_reference(fake: FakeJudge) -> None:
    assert eval_gpt_review.get_eval("a", 5, judge_model="m", judge_base_url=fake.base_url) == "8 9\nboth"
    answer = qa_baseline_gpt35.get_answer(3, "a", 5, judge_model="m", judge_base_url=fake.base_url)
    assert answer["question_id"] == 3 and answer["text"] == "8 9\nboth"
    with pytest.raises(UserError, match="--judge-model is missing"):
        eval_gpt_review_bench.get_eval("a", 5)
    assert eval_gpt_review_bench.parse_score("7 8") == [7.0, 8.0]
