"""The scoring programs and converters of the reference: what they print and write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import PROGRAMS, start

from llava.eval.eval_pope import eval_pope
from llava.eval.eval_textvqa import prompt_processor
from llava.eval.m4c_evaluator import (
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextCapsBleu4Evaluator,
    TextVQAAccuracyEvaluator,
)
from llava.eval.scoring.science_qa import ensemble
from llava.eval.scoring.science_qa_prompts import build_prompt_chatbot
from llava.eval.tasks.yes_no.counts import Counts
from llava.utils import UserError

SHORT = "\nAnswer the question using a single word or phrase."


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    return path


def answers(path: Path, said: dict[Any, str]) -> Path:
    return lines(path, [{"question_id": key, "prompt": "q", "text": text} for key, text in said.items()])


def run(name: str, monkeypatch: pytest.MonkeyPatch, words: dict[str, object], *first: str) -> None:
    start(PROGRAMS[name], [*first, *(f"--{key}={value}" for key, value in words.items())], monkeypatch)


# ---- evaluators ----


def test_evaluators() -> None:
    ten = [{"pred_answer": "Two dogs.", "gt_answers": ["2 dogs"] * 2 + ["cat"] * 8}]
    assert TextVQAAccuracyEvaluator().eval_pred_list(ten) == pytest.approx(0.6)
    assert STVQAAccuracyEvaluator().eval_pred_list(ten) == 1.0
    near = [{"pred_answer": "Kitten", "gt_answers": ["sitting", "x"]}]
    assert STVQAANLSEvaluator().eval_pred_list(near) == pytest.approx(4 / 7)
    caps = [{"pred_answer": "a red dog runs", "gt_answers": ["a red dog runs"]}]
    assert TextCapsBleu4Evaluator().eval_pred_list(caps) == pytest.approx(1.0)


@pytest.mark.parametrize("evaluator", [TextVQAAccuracyEvaluator, STVQAAccuracyEvaluator, STVQAANLSEvaluator])
def test_no_prediction_is_refused(evaluator: type[Any]) -> None:
    with pytest.raises(UserError, match="no prediction"):
        evaluator().eval_pred_list([])


def test_nine_people_are_refused() -> None:
    with pytest.raises(UserError, match="prediction 1 has 9 answers"):
        TextVQAAccuracyEvaluator().eval_pred_list([{"pred_answer": "a", "gt_answers": ["a"] * 9}])


# ---- TextVQA, POPE ----


@pytest.mark.parametrize(
    "prompt, question",
    [
        ("What IS it?" + SHORT, "what is it?"),
        ("What?\nReference OCR token: A, B" + SHORT, "what?"),
        ("Reference OCR token: A\nWhat?" + SHORT, "what?"),
        ("OCR tokens: a. Question: Who? Short answer:", "who?"),
    ],
)
def test_prompts_of_textvqa(prompt: str, question: str) -> None:
    assert prompt_processor(prompt) == question


def test_another_prompt_is_no_prompt_of_textvqa() -> None:
    with pytest.raises(UserError, match="none of TextVQA"):
        prompt_processor("What is it?")


def test_textvqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"image_id": "i", "question": "What?", "answers": ["go"] * 2 + ["stop"] * 8}
    (tmp_path / "a.json").write_text(json.dumps({"data": [row]}))
    lines(tmp_path / "model.jsonl", [{"question_id": "i", "prompt": "What?" + SHORT, "text": "Go."}])
    words = {"annotation-file": tmp_path / "a.json", "result-file": tmp_path / "model.jsonl"}
    run("eval_textvqa", monkeypatch, words)
    assert capsys.readouterr().out.split("\n")[:3] == ["model", "Samples: 1", "Accuracy: 60.00%"]
    lines(tmp_path / "model.jsonl", [{"question_id": "j", "prompt": "What?" + SHORT, "text": "Go."}])
    with pytest.raises(SystemExit):
        run("eval_textvqa", monkeypatch, words)
    assert "has no question" in capsys.readouterr().err


def test_pope_counts_are_those_of_scikit_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    truth = [True, False, True, True, False, False, True]
    said = [True, True, False, True, False, True, True]
    counts = Counts()
    for one, other in zip(said, truth, strict=True):
        counts.add(one, other)
    assert counts.f1 == pytest.approx(metrics.f1_score(truth, said))
    assert counts.precision == pytest.approx(metrics.precision_score(truth, said))
    assert counts.recall == pytest.approx(metrics.recall_score(truth, said))
    labels = lines(tmp_path / "l.json", [{"label": "yes" if one else "no"} for one in truth])
    eval_pope([{"text": "Yes, a dog." if one else "No."} for one in said], str(labels))
    assert f"F1 score: {counts.f1}" in capsys.readouterr().out


def test_pope_without_a_yes_has_no_division_by_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = lines(tmp_path / "l.json", [{"label": "no"}, {"label": "no"}])
    eval_pope([{"text": "no"}, {"text": "No"}], str(labels))
    assert "0.000, 1.000, 0.000, 0.000, 0.000" in capsys.readouterr().out
    with pytest.raises(UserError, match="2 labels, and there are 1 answers"):
        eval_pope([{"text": "no"}], str(labels))


# ---- ScienceQA ----


@pytest.fixture
def science(tmp_path: Path) -> Path:
    problem = {"question": "Which  one?", "choices": ["a", "b", "c"], "hint": "", "image": None}
    problem |= {"lecture": "All\\nswim.", "solution": "", "caption": ""}
    problems = {str(key): problem | {"answer": key % 3} for key in range(4)}
    problems["3"] |= {"image": "image.png"}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(problems), "val": []}))
    return tmp_path


def test_science_qa(
    science: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question_id": "0", "text": "A", "prompt": "<image>\nq"},
        {"question_id": "1", "text": "A. The answer is B.", "prompt": "q"},
        {"question_id": "2", "text": "D", "prompt": "q"},
    ]
    lines(science / "r.jsonl", rows)
    words = {"base-dir": science, "result-file": science / "r.jsonl"}
    words |= {"output-file": science / "out/o.json", "output-result": science / "out/r.json"}
    run("eval_science_qa", monkeypatch, words)
    assert capsys.readouterr().out == "Total: 4, Correct: 1, Accuracy: 25.00%, IMG-Accuracy: 100.00%\n"
    result = json.loads((science / "out/r.json").read_text())
    assert result["results"] == {"0": 0, "1": 0, "2": -1, "3": -1} and result["outputs"]["3"] == "FAILED"
    with pytest.raises(SystemExit):
        run("eval_science_qa", monkeypatch, words | {"split": "val"})
    assert "is empty" in capsys.readouterr().err


def test_gpt4_decides_where_it_has_an_answer(science: Path) -> None:
    told = "The answer is {}."
    ours = answers(science / "ours.jsonl", {str(key): told.format(one) for key, one in enumerate("ABAA")})
    gpt4 = {"outputs": {"0": told.format("B"), "1": "I do not know", "2": told.format("C")}}
    again = {"outputs": {"0": told.format("A"), "2": "no letter"}}
    (science / "g.json").write_text(json.dumps(gpt4))
    (science / "q.json").write_text(json.dumps(again))
    files = (str(science / "g.json"), str(ours), str(science / "q.json"))
    counts, result = ensemble(str(science), "test", list("ABCDE"), files)
    assert counts == {
        "total": 3, "ours": 2, "gpt4": 1, "gpt4_ours": 2, "upper": 3, "gpt4_failed": 1, "requeried": 2,
        "requery": 3,
    }  # fmt: skip
    assert result["results"] == {"0": 0, "1": 1, "2": 2} and result["acc"] == 100.0


@pytest.mark.parametrize(
    "form, asked, answer",
    [
        (
            "CQM-A",
            "Context: N/A\nQuestion: Which one?\nOptions: (A) a (B) b (C) c",
            "Answer: The answer is B.",
        ),
        (
            "QCMLE-LEPA",
            "Question: Which one?\nContext: N/A\nOptions: (A) a (B) b (C) c\nBECAUSE: All\nswim.",
            "LECTURE: All\nswim.\n###\nANSWER: B.",
        ),
        (
            "QCEM-AL",  # AL holds the solution, of which there is none
            "Question: Which one?\nContext: N/A\nBECAUSE: \nOptions: (A) a (B) b (C) c",
            "Answer: The answer is B.",
        ),
    ],
)
def test_formats_of_science_qa(science: Path, form: str, asked: str, answer: str) -> None:
    problems = json.loads((science / "problems.json").read_text())
    assert build_prompt_chatbot(problems, ["1"], form) == {"1": (asked, answer)}
    with pytest.raises(UserError, match="the prompt format is 'QCM-XX'"):
        build_prompt_chatbot(problems, ["1"], "QCM-XX")


def test_science_qa_becomes_training_data(science: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("convert_sqa", monkeypatch, {"base_dir": science, "split": "test"}, "convert_to_llava")
    rows = json.loads((science / "llava_test_QCM-LEPA.json").read_text())
    assert list(rows[3]) == ["id", "image", "conversations"] and rows[3]["image"] == "3/image.png"
    assert rows[3]["conversations"][0]["value"].startswith("Which one?\nContext")
    assert rows[3]["conversations"][0]["value"].endswith("\n<image>")
    run("convert_sqa", monkeypatch, {"base-dir": science, "split": "test"}, "convert_to_jsonl")
    told = (science / "scienceqa_test_QCM-LEPA.jsonl").read_text().splitlines()
    assert list(json.loads(told[0])) == ["id", "instruction", "output"] and len(told) == 4


# ---- submissions ----


def test_converters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = answers(tmp_path / "m.jsonl", {1: "The Red bus.", 2: "two"})
    run("convert_gqa", monkeypatch, {"src": source, "dst": tmp_path / "gqa.json"})
    assert json.loads((tmp_path / "gqa.json").read_text())[0] == {
        "questionId": 1,
        "prediction": "the red bus",
    }
    run("convert_mmvet", monkeypatch, {"src": source, "dst": tmp_path / "mmvet.json"})
    assert json.loads((tmp_path / "mmvet.json").read_text()) == {"v1_1": "The Red bus.", "v1_2": "two"}
    questions = lines(tmp_path / "q.jsonl", [{"question_id": n, "image": f"{n}.jpg"} for n in (1, 2)])
    words = {
        "annotation-file": questions,
        "result-file": source,
        "result-upload-file": tmp_path / "up/v.json",
    }
    run("convert_vizwiz", monkeypatch, words)
    told = json.loads((tmp_path / "up/v.json").read_text())
    assert told == [{"image": "1.jpg", "answer": "red bus"}, {"image": "2.jpg", "answer": "2"}]
    assert capsys.readouterr().out == "total results: 2, total split: 2, error_line: 0\n"
    lines(questions, [{"question_id": n, "image": f"{n}.jpg"} for n in (1, 2, 3)])
    with pytest.raises(SystemExit):
        run("convert_vizwiz", monkeypatch, words)
    assert "1 of 3 questions have no answer, the first is 3" in capsys.readouterr().err


def test_a_broken_answers_file_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.jsonl").write_text('{"question_id": 1, "text": "a"}\n{"question_id": 2, "te')
    with pytest.raises(SystemExit):
        run("convert_gqa", monkeypatch, {"src": tmp_path / "m.jsonl", "dst": tmp_path / "out.json"})
    assert "1 lines are broken, the first: line 2" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_vqav2_keeps_every_question_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": n} for n in (7, 8)])
    answers(tmp_path / "answers/s/c/merge.jsonl", {8: "Yes."})
    run("convert_vqav2", monkeypatch, {"dir": tmp_path, "ckpt": "c", "split": "s"})
    told = json.loads((tmp_path / "answers_upload/s/c.json").read_text())
    assert told == [{"question_id": 7, "answer": ""}, {"question_id": 8, "answer": "yes"}]


def test_seed_by_kind_and_medium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question_id": "v1", "data_type": "video", "question_type_id": 2, "answer": "A"},
        {"question_id": "2", "data_type": "image", "question_type_id": 1, "answer": "B"},
    ]
    (tmp_path / "a.json").write_text(
        json.dumps({"question_type": {"Scene": 1, "Action": 2}, "questions": rows})
    )
    words = {"annotation-file": tmp_path / "a.json", "result-upload-file": tmp_path / "up.jsonl"}
    words |= {"result-file": answers(tmp_path / "m.jsonl", {"v1": "A", 2: "C"})}
    run("convert_seed", monkeypatch, words)
    assert capsys.readouterr().out.splitlines() == [
        "Scene: 0.00%", "Action: 100.00%", "Total accuracy: 50.00%", "image accuracy: 0.00%",
        "video accuracy: 100.00%",
    ]  # fmt: skip


# ---- reviews ----


def test_reviews_without_scores_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [[8, 4], [-1, -1], [6, 6]]
    rows = [{"question_id": n, "category": "conv", "tuple": pair} for n, pair in enumerate(pairs)]
    lines(tmp_path / "reviews/reviews_m.jsonl", rows)
    run("summarize", monkeypatch, {"dir": tmp_path / "reviews"})
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == ["reviews_m", "all 71.4 70.0 50.0", "conv 71.4 70.0 50.0",
                        "1 reviews have no scores and are left out"]  # fmt: skip
