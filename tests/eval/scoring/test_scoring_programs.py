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


def test_gpt4_decides_where_it_has_an_answer(science: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the second question to GPT-4 gives no letter, ours counts, as in the reference."""
    told = "The answer is {}."
    ours = answers(science / "ours.jsonl", {str(key): told.format(one) for key, one in enumerate("ABAA")})
    gpt4 = {"outputs": {"0": told.format("B"), "1": "I do not know", "2": told.format("C")}}
    again = {"outputs": {"0": told.format("A"), "2": "no letter"}}
    (science / "g.json").write_text(json.dumps(gpt4))
    (science / "q.json").write_text(json.dumps(again))
    rows = [{"question_id": key, "prompt": "q", "text": text} for key, text in again["outputs"].items()]
    lines(science / "q.jsonl", rows)
    files = (str(science / "g.json"), str(ours), str(science / "q.json"))
    counts, result = ensemble(str(science), "test", list("ABCDE"), files)
    assert counts == {
        "total": 3, "ours": 2, "gpt4": 1, "gpt4_ours": 2, "upper": 3, "gpt4_failed": 1, "requeried": 1,
        "requery": 2,
    }  # fmt: skip
    assert result["results"] == {"0": 0, "1": 1, "2": 0} and result["count"] == 3
    assert "1 of 4 problems are not answered in both" in capsys.readouterr().err
    as_lines = ensemble(str(science), "test", list("ABCDE"), (*files[:2], str(science / "q.jsonl")))
    assert as_lines == (counts, result)


def test_the_programs_of_the_ensemble_print_the_lines_of_the_reference(
    science: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {str(key): f"The answer is {one}." for key, one in enumerate("ABCA")}
    answers(science / "ours.jsonl", told)
    (science / "g.json").write_text(json.dumps({"outputs": told | {"3": "I do not know"}}))
    answers(science / "q.jsonl", {})
    words: dict[str, object] = {"base-dir": science, "gpt4-result": science / "g.json"}
    words |= {"our-result": science / "ours.jsonl"}
    run("eval_science_qa_gpt4", monkeypatch, words)
    assert capsys.readouterr().out.splitlines() == [
        "Total: 4, Correct: 4, Accuracy: 100.00%",
        "Total: 4, Correct (upper): 4, Accuracy: 100.00%",
        "Total: 4, GPT-4 NO-ANS (RANDOM): 1, Percentage: 25.00%",
    ]
    words |= {"requery-result": science / "q.jsonl", "output-result": science / "final.json"}
    run("eval_science_qa_gpt4_requery", monkeypatch, words)
    assert capsys.readouterr().out.splitlines()[:6] == [
        "Total: 4, Our-Correct: 4, Accuracy: 100.00%",
        "Total: 4, GPT-4-Correct: 3, Accuracy: 75.00%",
        "Total: 4, GPT-4 NO-ANS (RANDOM): 1, Percentage: 25.00%",
        "Total: 4, GPT-4-OursVisual-Correct: 4, Accuracy: 100.00%",
        "Total: 4, Requery-Correct: 4, Accuracy: 100.00%",
        "Total: 4, Correct upper: 4, Accuracy: 100.00%",
    ]
    assert json.loads((science / "final.json").read_text())["acc"] == 100.0


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


@pytest.fixture
def servers(tmp_path: Path) -> dict[str, dict[str, object]]:
    """The command lines of all converters, for the answers in m.jsonl to the questions 1 and 2."""
    row = {"data_type": "image", "question_type_id": 1, "answer": "A"}
    seed = {"question_type": {"Scene": 1}, "questions": [row | {"question_id": str(n)} for n in (1, 2)]}
    (tmp_path / "seed.json").write_text(json.dumps(seed))
    (tmp_path / "bench.tsv").write_text("index\tquestion\tA\n1\tq\ta\n2\tq\ta\n")
    vizwiz = lines(tmp_path / "q.jsonl", [{"question_id": n, "image": f"{n}.jpg"} for n in (1, 2)])
    lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": n} for n in (1, 2)])
    (tmp_path / "answers/s/m").mkdir(parents=True)
    (tmp_path / "answers/s/m/merge.jsonl").symlink_to(tmp_path / "m.jsonl")
    source, target = tmp_path / "m.jsonl", tmp_path / "up/out"
    return {
        "convert_gqa": {"src": source, "dst": target},
        "convert_mmvet": {"src": source, "dst": target},
        "convert_seed": {
            **{"annotation-file": tmp_path / "seed.json", "result-file": source},
            "result-upload-file": target,
        },
        "convert_mmbench": {
            **{"annotation-file": tmp_path / "bench.tsv", "result-dir": tmp_path},
            **{"upload-dir": tmp_path / "up", "experiment": "m"},
        },
        "convert_vizwiz": {
            **{"annotation-file": vizwiz, "result-file": source, "result-upload-file": target},
        },
        "convert_vqav2": {"dir": tmp_path, "ckpt": "m", "split": "s"},
    }


CONVERTERS = ["convert_gqa", "convert_mmvet", "convert_seed", "convert_mmbench", "convert_vizwiz"]
CONVERTERS += ["convert_vqav2"]
REFERENCE_PASSES_OVER = ("convert_vizwiz", "convert_vqav2")  # it counts broken lines; at others it fails


@pytest.mark.parametrize("name", CONVERTERS)
def test_broken_lines_are_named_by_every_converter(
    name: str, servers: dict[str, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole = [json.dumps({"question_id": n, "text": "A"}) for n in (1, 2)]
    (tmp_path / "m.jsonl").write_text("\n".join([*whole, '{"question_id": 2, "te']))
    if name in REFERENCE_PASSES_OVER:
        run(name, monkeypatch, servers[name])
        told = capsys.readouterr()
        assert told.out == "total results: 2, total split: 2, error_line: 1\n"
        assert "m.jsonl" in told.err or "merge.jsonl" in told.err
        assert "1 lines are broken and have no answer: line 3 is no JSON object" in told.err
        return
    with pytest.raises(SystemExit) as ended:
        run(name, monkeypatch, servers[name])
    assert ended.value.code == 2
    assert "1 lines are broken, the first: line 3" in capsys.readouterr().err
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize("name", CONVERTERS)
def test_questions_with_several_answers_are_named_by_every_converter(
    name: str, servers: dict[str, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if name == "convert_mmbench":
        pytest.importorskip("openpyxl", reason="openpyxl writes the workbook")
    rows = [{"question_id": n, "text": text} for n, text in ((1, "A"), (2, "B"), (1, "B"))]
    lines(tmp_path / "m.jsonl", rows)
    run(name, monkeypatch, servers[name])
    assert "1 questions have several answers, the last one counts: 1" in capsys.readouterr().err


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
                        "1 reviews have no scores and are left out: 1"]  # fmt: skip
    lines(tmp_path / "reviews/reviews_m.jsonl", [*rows, rows[0], {"tuple": "8 4"}])
    run("summarize", monkeypatch, {"dir": tmp_path / "reviews"})
    told = capsys.readouterr().out.splitlines()
    assert "2 reviews have no scores and are left out: 1, of line 5" in told
    assert "1 reviews are of a question that has one already, and count as well: 0" in told
    with pytest.raises(SystemExit):
        run("summarize", monkeypatch, {"dir": tmp_path / "reviews", "version": "0613"})
    assert "none of the 1 files of reviews is of the wanted judge (-v)" in capsys.readouterr().err
