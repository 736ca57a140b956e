"""Every benchmark: the same questions from the reference's file and from the originals; scores; bad input."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest
from examples import EXAMPLES, GQA
from written import Example, answers, scored, scores_as, write

from llava.eval.tasks.base import Task, TaskData
from llava.eval.tasks.registry import TASKS, task_named
from llava.utils import UserError

each = pytest.mark.parametrize("example", EXAMPLES, ids=str)
# of which the reference has a question file; whose annotations are text
with_reference = pytest.mark.parametrize("example", [one for one in EXAMPLES if one.reference], ids=str)
with_text = pytest.mark.parametrize("example", [one for one in EXAMPLES if not one.build], ids=str)
HERE = ("llava.eval.tasks.short.", "llava.eval.tasks.choice.", "llava.eval.tasks.yes_no.")


def test_every_task_has_an_example() -> None:
    assert {one.task for one in EXAMPLES} == {name for name, where in TASKS.items() if where.startswith(HERE)}


@pytest.mark.parametrize("name", [name for name, where in TASKS.items() if where.startswith(HERE)])
def test_a_benchmark_is_a_short_file(name: str) -> None:
    """At most 60 lines of code, without imports, docstrings and blank lines; the rest lies elsewhere."""
    source = Path(inspect.getfile(type(task_named(name)))).read_text()
    tree = ast.parse(source)
    passed: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            passed |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = [one for at, one in enumerate(source.splitlines(), start=1) if one.strip() and at not in passed]
    assert len(lines) <= 60, f"{len(lines)} lines"


@with_reference
def test_the_original_files_give_the_questions_of_the_reference(example: Example, tmp_path: Path) -> None:
    task = example.the_task()
    originals = list(task.asks(example.place(tmp_path)))
    reference = list(task.asks(example.place(tmp_path, reference=True)))
    assert [(one.id, one.text, one.images) for one in originals] == [
        (one.id, one.text, one.images) for one in reference
    ]
    assert [one.prompt for one in originals] == [one.prompt for one in reference]


@each
@pytest.mark.parametrize("reference", [False, True], ids=["originals", "reference"])
def test_right_answers_score_in_full(example: Example, reference: bool, tmp_path: Path) -> None:
    report = scored(example, example.place(tmp_path, reference=reference))
    assert scores_as(example, report)
    assert report.answered == report.asked == len(example.right)
    assert not (report.unparsable or report.failed or report.missing or report.unexpected)


@each
def test_answers_that_say_nothing_are_counted_and_earn_nothing(example: Example, tmp_path: Path) -> None:
    report = scored(example, example.place(tmp_path), ["?!"] * len(example.right))
    if example.score is None:
        return
    first = report.scores[0]
    assert report.unparsable == len(example.right) or all(one.credit == 0 for one in report.graded)
    if report.unparsable:
        assert first.low == 0
        assert first.high == pytest.approx(example.score)


# ---- bad input ----


def _data_file(task: Task, data: TaskData, key: str) -> Path:
    path = data.place(task, key)
    if not path.is_dir():
        return path
    found = [one for one in sorted(path.rglob("*.*")) if one.suffix in (".txt", ".json")]
    return next((one for one in found if one.name == "problems.json"), found[0])


@with_text
def test_a_missing_annotation_file_is_told_with_its_flag_and_source(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    records = answers(example, data)
    task = example.the_task()
    place = data.place(task, example.annotation)
    if example.annotation == "base-dir":
        place = place / "problems.json"
    place.rename(place.with_name("elsewhere"))
    with pytest.raises(UserError, match=f"--{example.annotation}.*Get it from http"):
        task.report(records, data)
    if example.annotation != "annotation-file" or not example.split:  # else the questions are in another file
        with pytest.raises(UserError, match=f"--{example.annotation}"):
            list(task.asks(data))


@each
def test_no_answer_at_all_is_told(example: Example, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{example.task}: the answers file holds no answer"):
        example.the_task().report([], example.place(tmp_path))


@each
def test_answers_of_another_question_set_are_told(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    records = [example.strayed(one, f"other-{number}") for number, one in enumerate(answers(example, data))]
    with pytest.raises(UserError, match=f"none of the {len(records)} answers belongs.*other-0"):
        example.the_task().report(records, data)


@each
def test_a_stray_answer_and_a_missing_one_are_named(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    records = answers(example, data)
    records[0] = example.strayed(records[0], "stray")
    report = example.the_task().report(records, data)
    assert report.unexpected == ("stray",)
    assert len(report.missing) >= 1
    assert report.answered == report.asked - 1


@each
def test_an_empty_answer_is_counted(example: Example, tmp_path: Path) -> None:
    report = scored(example, example.place(tmp_path), [*example.right[:-1], ""])
    assert "1 answers are empty" in report.notes
    assert report.answered == len(example.right)


@each
def test_answers_that_stand_twice_count_once(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    records = answers(example, data)
    wrong_before = [records[0] | {example.answer: "?!"}, *records]
    report = example.the_task().report(wrong_before, data)
    assert any("1 answers are to a question that has one already" in note for note in report.notes)
    assert scores_as(example, report)


@each
def test_an_answer_that_is_no_text_is_told(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    records = answers(example, data)
    with pytest.raises(UserError, match="answer 1.*expected a text"):
        example.the_task().report([records[0] | {example.answer: 7}], data)
    with pytest.raises(UserError, match="answer 1 has no '(question_id|img_path)'"):
        example.the_task().report([{example.answer: "yes"}], data)


@each
def test_a_byte_order_mark_is_no_trouble(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    before = [(one.id, one.text) for one in example.the_task().asks(data)]
    for name in example.originals:
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [(one.id, one.text) for one in example.the_task().asks(data)] == before
    assert scores_as(example, scored(example, data))


@with_text
def test_a_folder_in_place_of_a_file_is_told(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    path = _data_file(example.the_task(), data, example.annotation)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        list(example.the_task().asks(data))


@with_text
def test_a_file_that_breaks_off_is_told(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    path = _data_file(example.the_task(), data, example.annotation)
    path.write_bytes(path.read_bytes().rstrip()[:-9])
    with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
        list(example.the_task().asks(data))


@with_text
def test_fields_that_lack_are_named(example: Example, tmp_path: Path) -> None:
    data = example.place(tmp_path)
    records = answers(example, data)
    path = _data_file(example.the_task(), data, example.annotation)
    text = path.read_text()
    text = text.replace("question\t", "query\t", 1) if path.suffix == ".tsv" else text.replace("\t", " ")
    for name in ("question", "questions", "label", "answers", "images"):
        text = text.replace(f'"{name}":', f'"{name}s":')
    path.write_text(text)
    with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
        list(example.the_task().asks(data))
        example.the_task().report(records, data)


@pytest.mark.parametrize(
    "example", [one for one in EXAMPLES if next(iter(one.reference), "").endswith(".jsonl")], ids=str
)
@pytest.mark.parametrize("fault", ["half", "broken", "no image"])
def test_broken_lines_of_the_question_file_are_counted(example: Example, fault: str, tmp_path: Path) -> None:
    data = example.place(tmp_path, reference=True)
    name = next(iter(example.reference))
    path = tmp_path / name
    lines = path.read_text().splitlines()
    if fault == "half":
        path.write_text("\n".join(lines)[:-20])
        expected = f"1 of {len(lines)} lines are no JSON, the first is line {len(lines)} .*breaks off"
    elif fault == "broken":
        path.write_text("\n".join(["{no", "no}", *lines]))
        expected = f"2 of {len(lines) + 2} lines are no JSON, the first is line 1"
    else:
        row = json.loads(lines[0])
        del row["image"]
        path.write_text("\n".join([json.dumps(row), *lines[1:]]))
        expected = "line 1 has no 'image'"
    with pytest.raises(UserError, match=expected):
        list(example.the_task().asks(data))


def test_two_questions_with_one_id_are_told(tmp_path: Path) -> None:
    data = GQA.place(tmp_path, reference=True)
    path = tmp_path / "llava_gqa_testdev_balanced.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [*rows, rows[0] | {"text": "another question"}])
    with pytest.raises(UserError, match="two questions have the id '201': 'Is it red"):
        list(task_named("gqa").asks(data))


@each
def test_sources_and_licences_are_told(example: Example) -> None:
    task = example.the_task()
    assert task.title
    for one in task.data:
        assert one.url.startswith("http"), one.key
        assert one.what
