"""Judged benchmarks: questions, the file for a judge, a fake judge that fails, reviews counted offline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_judge import fake_judge

from llava.eval.run.answers import read_answers
from llava.eval.run.results import score
from llava.eval.summarize_gpt_review import summarize
from llava.eval.tasks.base import Ask, Record, Said, Task, TaskData
from llava.eval.tasks.registry import TASKS, task_named
from llava.eval.webpage.data import compared
from llava.utils import UserError

CAPTION = {"image": "001.jpg", "caption": "A red bus."}
BOXES = {
    "image": "000001.jpg",
    "captions": ["A bus."],
    "instances": [{"category": "bus", "bbox": [0, 0, 1, 1]}],
}


@dataclass(frozen=True)
class Case:
    """A judged benchmark in miniature. rows: file -> lines, or an object."""

    task: str
    files: dict[str, Any]
    images: tuple[str, ...]

    def __str__(self) -> str:
        return self.task

    def place(self, root: Path, **options: str) -> TaskData:
        for name, rows in self.files.items():
            lines = (
                "".join(json.dumps(row) + "\n" for row in rows)
                if isinstance(rows, list)
                else json.dumps(rows)
            )
            (root / name).write_text(lines)
        for image in self.images:
            (root / image).parent.mkdir(exist_ok=True)
            (root / image).write_bytes(b"an image")
        return TaskData(root, options={key.replace("_", "-"): value for key, value in options.items()})


def questions(image: str | None, *categories: str) -> list[dict[str, Any]]:
    rows = [
        {"question_id": number, "category": category, "text": f"Question {number}?"}
        for number, category in enumerate(categories)
    ]
    return rows if image is None else [{**row, "image": image} for row in rows]


def gpt(n: int) -> list[dict[str, Any]]:
    return [
        {"question_id": number, "text": f"gpt {number}", "answer_id": f"g{number}"} for number in range(n)
    ]


PAIRS = [
    Case(
        "llava_bench",
        {
            "questions.jsonl": questions("001.jpg", "conv", "detail", "conv"),
            "context.jsonl": [CAPTION],
            "answers_gpt4.jsonl": gpt(3),
        },
        ("images/001.jpg",),
    ),
    Case(
        "coco_qa90",
        {
            "qa90_questions.jsonl": questions("COCO_val2014_000001.jpg", "conv", "detail", "conv"),
            "caps_boxes_coco2014_val_80.jsonl": [BOXES],
            "qa90_gpt4_answer.jsonl": gpt(3),
        },
        ("val2014/COCO_val2014_000001.jpg",),
    ),
    Case(
        "vicuna80",
        {"question.jsonl": questions(None, "generic", "math", "generic"), "answer_gpt35.jsonl": gpt(3)},
        (),
    ),
]
MM_VET = Case(
    "mm_vet",
    {
        "mm-vet.json": {
            f"v1_{number}": {
                "imagename": "v1_0.png",
                "question": f"Question {number}?",
                "answer": "a <AND> b" if number else "x <OR> y",
                "capability": ["ocr", "math"] if number else ["rec"],
            }
            for number in range(3)
        }
    },
    ("images/v1_0.png",),
)
CASES = [*PAIRS, MM_VET]
each = pytest.mark.parametrize("case", CASES, ids=str)
each_pair = pytest.mark.parametrize("case", PAIRS, ids=str)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("llava.eval.judges.client.FIRST_WAIT_S", 0.01)


def answered(task: Task, data: TaskData) -> list[Record]:
    asks = list(task.asks(data))
    return [task.record(ask, Said(f"ours {ask.id}", "llava-x/7b", f"o{ask.id}")) for ask in asks]


def test_every_judged_task_is_here() -> None:
    judged = {name for name, where in TASKS.items() if ".judged." in where}
    assert {one.task for one in CASES} == judged - {"science_qa_gpt"}


@each
def test_questions_and_records(case: Case, tmp_path: Path) -> None:
    data, task = case.place(tmp_path), task_named(case.task)
    asks = list(task.asks(data))
    assert [(one.id, one.text) for one in asks] == [(number, f"Question {number}?") for number in range(3)]
    for one in asks:
        assert [str(image) for image in one.images] == [str(tmp_path / image) for image in case.images]
    fields = list(task.record(Ask(1, "a"), Said("b", "m", "i")))
    with_prompt = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert fields == [one for one in with_prompt if one != "prompt" or case.task != "vicuna80"]
    assert task.max_new_tokens == 1024


@each
def test_without_a_judge_the_file_for_one_is_written(case: Case, tmp_path: Path) -> None:
    data, task = case.place(tmp_path), task_named(case.task)
    report = task.report(answered(task, data), data)
    assert not report.scores and report.answered == 3
    (place,) = report.written
    assert any(
        "nobody judged: name a judge with --judge-model" in one and str(place) in one for one in report.notes
    )
    assert place.name.startswith("llava-x_7b.to-judge.")
    if case.task == "mm_vet":
        assert json.loads(place.read_text()) == {f"v1_{number}": f"ours {number}" for number in range(3)}
    else:
        rows = [json.loads(line) for line in place.read_text().splitlines()]
        assert rows[1]["question_id"] == 1 and "ours 1" in rows[1]["messages"][1]["content"]
        assert (rows[1]["answer1_id"], rows[1]["answer2_id"]) == ("g1", "o1")


@each_pair
def test_reviews_go_from_command_to_command(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A judged score writes reviews: summarised, shown on the page, and counted again without a judge."""
    with fake_judge(lambda text, before: "8 4\nAssistant 1 is better.") as fake:
        data = case.place(tmp_path, judge_model="judge-1", judge_base_url=fake.base_url)
        task = task_named(case.task)
        rows = [row | {"question_id": str(row["question_id"])} for row in answered(task, data)]
        path = tmp_path / "ours.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        report, result = score(task, data, read_answers(path))
    assert report.scores[0].value == 50.0 and report.scores[0].n == 3
    assert isinstance(result["judge"], dict) and result["judge"]["model"] == "judge-1-2026"
    (reviews,) = (tmp_path / "reviews").glob("*.jsonl")
    table, amiss = summarize(reviews, [])
    assert table["all"] == (50.0, 80.0, 40.0) and not amiss
    questions = next(tmp_path / name for name in case.files if "question" in name)
    theirs = next(tmp_path / name for name in case.files if "answer" in name)
    page = compared(questions, [theirs, path], [reviews])
    assert [one["scores"] for one in page.questions] == [{"llava-x/7b": [8.0, 4.0]}] * 3
    assert page.questions[0]["evaluations"] == {"llava-x/7b": "**Assistant 1** is better."}
    text = reviews.read_text().replace('"question_id": 0', '"question_id": "0"')
    (tmp_path / "of-others.jsonl").write_text(text)
    offline = TaskData(tmp_path, options={"reviews": str(tmp_path / "of-others.jsonl")})
    again, told = score(task, offline, read_answers(path))
    assert again.scores == report.scores and isinstance(told["judge"], dict)
    assert (told["judge"]["model"], told["judge"]["kept"]) == ("judge-1-2026", 3)


@each_pair
def test_pairs_are_scored_and_failures_are_never_averaged_in(case: Case, tmp_path: Path) -> None:
    replies = {0: "8 4\nx", 1: "refusal", 2: "10 9"}
    with fake_judge(lambda text, before: replies[int(text.partition("ours ")[2][0])]) as fake:
        data = case.place(tmp_path, judge_model="judge-1", judge_base_url=fake.base_url)
        task = task_named(case.task)
        report = task.report(answered(task, data), data)
        assert report.failed == 1 and report.unparsable == 0
        (score,) = report.scores
        assert (score.kind, score.n) == ("judged", 2)
        assert score.value == pytest.approx(100 * 13 / 18)
        assert (score.low, score.high) == (pytest.approx(100 * 13 / 28), pytest.approx(100 * 23 / 28))
        notes = " ".join(report.notes)
        assert "judged by judge-1-2026: a judged number depends on its judge, and is not comparable" in notes
        assert "1 of 3 questions have no judgement" in notes and "I will not judge" in notes
        assert [one.credit for one in report.graded] == [0.4, None, 0.9]
        judge = report.judge
        assert (judge["model"], judge["asked_for"], judge["judged"]) == ("judge-1-2026", ["judge-1"], 2)
        fake.script = lambda text, before: "5 5"
        n_before = len(fake.requests)
        again = task.report(answered(task, data), data)
        assert len(fake.requests) == n_before + 1 and again.failed == 0
    assert again.scores[0].value == pytest.approx(100 * 18 / 23)
    by_category = again.tables["relative score by category"]
    assert sorted(by_category.values()) == pytest.approx(sorted([100 * 13 / 18, 100.0]))
    (reviews,) = (tmp_path / "reviews").glob("*.jsonl")
    assert reviews.name == "llava-x_7b.judge-1.jsonl"
    offline = case.place(tmp_path, reviews=str(reviews))
    assert task.report(answered(task, offline), offline).scores[0].value == again.scores[0].value


def test_mm_vet_is_graded_by_capability(tmp_path: Path) -> None:
    replies = {0: "1.0", 1: "0.5", 2: "1.5"}
    with fake_judge(lambda text, before: replies[int(text.partition("ours ")[2][0])]) as fake:
        data = MM_VET.place(tmp_path, judge_model="judge-1", judge_base_url=fake.base_url)
        task = task_named("mm_vet")
        report = task.report(answered(task, data), data)
    assert any(
        "x <OR> y" in fake.content(index) and "<OR> separates" in fake.content(index) for index in range(3)
    )
    (score,) = report.scores
    assert (score.kind, score.n, score.value) == ("judged", 2, 75.0)
    assert (score.low, score.high) == (50.0, pytest.approx(100 * 2.5 / 3))
    assert report.unparsable == 1 and report.failed == 0
    assert report.tables["judged score by capability"] == {"math": 50.0, "ocr": 50.0, "rec": 100.0}
    assert report.tables["judged score by set of capabilities"] == {"math, ocr": 50.0, "rec": 100.0}
    assert any("the score 1.5 is out of range" in one for one in report.notes)


def test_mm_vet_reads_the_reference_question_file(tmp_path: Path) -> None:
    data, task = MM_VET.place(tmp_path), task_named("mm_vet")
    originals = list(task.asks(data))
    rows = [
        {"question_id": number, "image": "v1_0.png", "text": f"Question {number}?", "category": "default"}
        for number in range(3)
    ]
    (tmp_path / "llava-mm-vet.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = list(task.asks(data))
    assert [(a.id, a.text, a.images) for a in originals] == [(b.id, b.text, b.images) for b in reference]
    assert task.report(answered(task, data), data).written  # both kinds of id are one


@each
def test_reviews_that_are_not_there(case: Case, tmp_path: Path) -> None:
    data, task = case.place(tmp_path, reviews=str(tmp_path / "none.jsonl")), task_named(case.task)
    with pytest.raises(UserError, match="no reviews at .*none.jsonl; name a judge with --judge-model"):
        task.report(answered(task, data), data)


@each
def test_a_dead_judge_is_one_sentence(case: Case, tmp_path: Path) -> None:
    task = task_named(case.task)
    data = case.place(tmp_path, judge_model="j", judge_base_url="http://127.0.0.1:9/v1", judge_retries="0")
    with pytest.raises(UserError, match="the judge answers nothing: the connection to"):
        task.report(answered(task, data), data)


@each_pair
def test_answers_to_measure_by_that_are_missing(case: Case, tmp_path: Path) -> None:
    data, task = case.place(tmp_path), task_named(case.task)
    data.place(task, "reference-answers").unlink()
    with pytest.raises(UserError, match="--reference-answers.*Get it from http"):
        task.report(answered(task, data), data)


@each
def test_the_answers_have_no_folder_of_judges(case: Case) -> None:
    assert all(one.scoring and one.default is None for one in task_named(case.task).options)
    assert all(
        one.url.startswith("http") and one.licence or one.key == "question-file"
        for one in task_named(case.task).data
    )


# ---- ScienceQA with GPT-4 ----

LETTERS = {
    "1": ("A", "A"),
    "2": ("B", "A"),
    "3": ("B", "A"),
    "4": (None, "B"),
    "5": ("B", None),
}  # ours, GPT-4's


def ensemble_data(root: Path, **options: str) -> TaskData:
    problem = {"question": "Which?", "choices": ["x", "y"], "answer": 0, "hint": "", "image": None}
    write = {
        "pid_splits.json": {"test": list(LETTERS)},
        "problems.json": {key: {**problem, "question": f"Which {key}?"} for key in LETTERS},
        "gpt4_result.json": {
            "outputs": {key: f"GPT: The answer is {other}." for key, (_, other) in LETTERS.items()}
        },
    }
    for name, content in write.items():
        (root / name).write_text(json.dumps(content))
    return TaskData(root, options={key.replace("_", "-"): value for key, value in options.items()})


def ensemble_answers(data: TaskData) -> list[Record]:
    task = task_named("science_qa_gpt")
    said = {key: f"Ours: The answer is {mine}." if mine else "?" for key, (mine, _) in LETTERS.items()}
    return [task.record(ask, Said(said[str(ask.id)], "m", "i")) for ask in task.asks(data)]


def test_the_ensemble_asks_a_judge_where_both_differ_only(tmp_path: Path) -> None:
    with fake_judge(lambda text, before: "2" if "Which 2?" in text else "both") as fake:
        data = ensemble_data(tmp_path, judge_model="j", judge_base_url=fake.base_url)
        report = task_named("science_qa_gpt").report(ensemble_answers(data), data)
        assert {fake.content(index).partition("Which ")[2][0] for index in range(len(fake.requests))} == {
            "2",
            "3",
        }
    whole, upper, alone = report.scores
    assert (whole.kind, whole.n, whole.value) == ("judged", 4, 50.0) and report.unparsable == 1
    assert (upper.kind, upper.value) == ("reference", 60.0)
    assert (alone.value, alone.low, alone.high) == (60.0, 60.0, 80.0)


def test_the_ensemble_without_a_judge(tmp_path: Path) -> None:
    data, task = ensemble_data(tmp_path), task_named("science_qa_gpt")
    report = task.report(ensemble_answers(data), data)
    assert [one.name for one in report.scores] == ["upper bound: either is right", "GPT-4 alone"]
    assert len(report.written[0].read_text().splitlines()) == 2
    (tmp_path / "gpt4_result.json").write_text('{"outputs": {"99": "A"}}')
    with pytest.raises(UserError, match="has no output for any of the 5 problems"):
        task.report(ensemble_answers(data), data)
    (tmp_path / "gpt4_result.json").write_text("{}")
    with pytest.raises(UserError, match="has no 'outputs'"):
        task.report(ensemble_answers(data), data)
