"""Choices: rolls and missing options of MMBench, its workbook, SEED-Bench's two rules, Q-Bench's records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from examples import ALL_ROUNDS, MMBENCH, MMBENCH_CN, QBENCH, QBENCH_ZH, SEED, mmbench_table
from written import answers, scored

from llava.eval.tasks.base import PackedImage
from llava.eval.tasks.rules import letter_of


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("B.", "B"), ("(C)", "C"), ("C) two birds", "C"), ("D: four", "D"), (" A \n", "A"),
        ("The answer is B.", "B"), ("Answer: D", "D"), ("two birds", "C"), ("Two birds.", "C"),
        ("答案是C", "C"),
        ("I see a dog.", "A"), ("A dog is there", "A"), ("A dog or a cat", None), ("E", None), ("", None),
        ("A cat", "B"), ("none of them", None), ("Dogs", None),
    ],
)  # fmt: skip
def test_letters_are_read_and_never_guessed(text: str, letter: str | None) -> None:
    assert letter_of(text, ["a dog", "a cat", "two birds", "four"]) == letter


def test_mmbench_asks_as_the_reference(tmp_path: Path) -> None:
    ask, *_ = MMBENCH.the_task().asks(MMBENCH.place(tmp_path))
    assert ask.prompt == "Look.\nWhich colour?\nA. red\nB. blue"
    assert ask.text == f"{ask.prompt}\nAnswer with the option's letter from the given choices directly."
    assert isinstance(ask.images[0], PackedImage)
    assert ask.images[0].open().size == (1, 1)
    ask, *_ = MMBENCH_CN.the_task().asks(MMBENCH_CN.place(tmp_path))
    assert ask.text.endswith("\n请直接回答选项字母。")


def test_mmbench_records_have_the_fields_of_the_reference(tmp_path: Path) -> None:
    data = ALL_ROUNDS.place(tmp_path)
    first, second = answers(ALL_ROUNDS, data)[:2]
    assert list(first) == [
        "question_id", "round_id", "prompt", "text", "options", "option_char",
        "answer_id", "model_id", "metadata",
    ]  # fmt: skip
    assert (first["round_id"], first["options"], first["option_char"]) == (0, ["red", "blue"], ["A", "B"])
    assert (second["round_id"], second["options"], second["option_char"]) == (1, ["blue", "red"], ["B", "A"])
    assert second["prompt"] == "Look.\nWhich colour?\nA. blue\nB. red"


def test_a_question_counts_only_if_every_roll_is_right(tmp_path: Path) -> None:
    report = scored(MMBENCH, MMBENCH.place(tmp_path), ["A", "A", "D"])
    circular, single = report.scores
    assert (circular.value, circular.n) == (50.0, 2)
    assert single.value == pytest.approx(200 / 3)
    unread = scored(MMBENCH, MMBENCH.place(tmp_path), ["A", "?", "D"]).scores[0]
    assert (unread.low, unread.value, unread.high) == (50.0, 50.0, 100.0)
    hopeless = scored(MMBENCH, MMBENCH.place(tmp_path), ["B", "?", "D"]).scores[0]
    assert hopeless.high == 50.0


def test_a_group_that_lacks_a_roll_is_left_out_of_the_circular_score(tmp_path: Path) -> None:
    data = MMBENCH.place(tmp_path)
    report = MMBENCH.the_task().report(answers(MMBENCH, data)[1:], data)
    assert [(one.value, one.n) for one in report.scores] == [(100.0, 1), (100.0, 2)]
    assert report.missing == (7,)


def test_options_that_read_as_missing_end_the_list_and_are_counted(tmp_path: Path) -> None:
    rows = [
        {"index": 1, "question": "q", "hint": "nan", "A": "x", "B": "None", "C": "y", "answer": "A"},
        {"index": 2, "question": "q", "A": "NA", "B": "z", "answer": "A"},
        {"index": 3, "question": "q", "A": "x", "B": "nAn", "answer": "A"},
        {"index": 4, "question": "q", "A": "none", "answer": "A"},
        {"index": 5, "question": "q", "A": "no", "B": "null and void", "answer": "A"},
    ]
    example = replace(MMBENCH, originals={"mmbench_dev_20230712.tsv": mmbench_table(*rows)})
    data = example.place(tmp_path)
    prompts = [ask.prompt for ask in example.the_task().asks(data)]
    assert prompts == ["q\nA. x", "q", "q\nA. x", "q", "q\nA. no\nB. null and void"]
    notes = scored(example, data, ["A"] * 5).notes
    assert any("4 rows have an option that reads as missing" in one and "6 options" in one for one in notes)


def test_later_tables_that_name_the_row_of_an_image_are_read(tmp_path: Path) -> None:
    rows = mmbench_table(
        {"index": 1, "question": "q", "A": "x", "answer": "A"},
        {"index": 2, "question": "q", "A": "x", "answer": "A", "image": "1"},
    )
    example = replace(MMBENCH, originals={"mmbench_dev_20230712.tsv": rows})
    one, two = example.the_task().asks(example.place(tmp_path))
    assert isinstance(one.images[0], PackedImage) and isinstance(two.images[0], PackedImage)
    assert one.images[0].encoded == two.images[0].encoded


def test_the_workbook_has_the_cells_of_the_reference(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    data = replace(MMBENCH.place(tmp_path), submission=tmp_path / "up" / "tiny.xlsx")
    report = MMBENCH.the_task().report(answers(MMBENCH, data, ["A", "B\x07", "D"])[1:], data)
    assert report.written == (tmp_path / "up" / "tiny.xlsx",)
    rows = [list(row) for row in openpyxl.load_workbook(report.written[0]).active.iter_rows(values_only=True)]
    assert rows == [
        ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"],
        [7, "Which colour?", "red", "blue", None, None, None, "A", "dev"],
        [1000007, "Which colour?", "blue", "red", None, None, "B", "B", "dev"],
        [8, "How many?", "1", "2", 3, 4, "D", "D", "dev"],
    ]


def test_seed_bench_is_scored_by_the_very_letter_and_by_the_letter_named(tmp_path: Path) -> None:
    data = replace(SEED.place(tmp_path), submission=tmp_path / "up.jsonl")
    report = scored(SEED, data, ["A.", "C", "what?"])
    assert [(one.kind, round(one.value, 1)) for one in report.scores] == [
        ("reference", 33.3),
        ("official", 66.7),
    ]
    assert report.tables["medium"] == {"image": 100.0, "video": 0.0}
    assert report.written == (tmp_path / "up.jsonl",)
    assert (tmp_path / "up.jsonl").read_text() == (
        '{"question_id": "101", "prediction": "A."}\n{"question_id": "102", "prediction": "C"}\n'
        '{"question_id": "v7", "prediction": "what?"}\n'
    )


def test_qbench_asks_and_records_as_the_program_of_its_descendants(tmp_path: Path) -> None:
    data = QBENCH.place(tmp_path)
    ask, *_ = QBENCH.the_task().asks(data)
    assert ask.text == "Is it sharp?\nChoose between one of the options as follows:\nA. Yes\nB. No\n"
    record = answers(QBENCH, data)[0]
    assert list(record) == [
        "img_path",
        "question",
        "candidates",
        "correct_ans",
        "type",
        "concern",
        "response",
    ]
    data = QBENCH_ZH.place(tmp_path)
    ask, *_ = QBENCH_ZH.the_task().asks(data)
    assert ask.text == "Is it sharp?\\在下列选项中选择一个:\nA. Yes\nB. No\n"
    ask, *_ = QBENCH_ZH.the_task().asks(replace(data, options={"line-break": "newline"}))
    assert ask.text.startswith("Is it sharp?\n在")


def test_qbench_test_has_no_answers_and_only_a_file_for_its_authors(tmp_path: Path) -> None:
    rows = [
        {name: value for name, value in row.items() if name != "correct_ans"}
        for row in QBENCH.originals["llvisionqa_dev.json"]
    ]
    example = replace(QBENCH, originals={"llvisionqa_test.json": rows}, split="test")
    report = scored(example, replace(example.place(tmp_path), submission=tmp_path / "up.jsonl"))
    assert report.scores == ()
    assert "not published" in report.notes[-1]
    assert json.loads((tmp_path / "up.jsonl").read_text().splitlines()[1])["response"] == "C. Bright"
