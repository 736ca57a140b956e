"""Words and phrases: the VQA rule and M4C's, submissions byte for byte, GQA's strings, TextVQA's prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from examples import GQA, SCIENCE_QA
from hypothesis import given, settings
from hypothesis import strategies as st
from open_examples import TEXTVQA, VIZWIZ, VIZWIZ_TEST, VQAV2, VQAV2_TEST, people
from written import answers, scored

from llava.eval.metrics.vqa import m4c_accuracy, m4c_answer, vqa_accuracy, vqa_answer
from llava.eval.tasks.choice.science_problems import said_letter
from llava.eval.tasks.short.textvqa_prompts import question_of
from llava.utils import UserError


@settings(deadline=None)
@given(st.integers(0, 10), st.integers(1, 10))
def test_the_vqa_rule_is_the_mean_over_nine_of_ten(same: int, asked: int) -> None:
    told = ["red"] * same + [f"colour{number}" for number in range(10 - same)]
    rest = [told[:place] + told[place + 1 :] for place in range(10)]
    expected = sum(min(1.0, one.count("red") / 3) for one in rest) / 10
    assert vqa_accuracy("Red.", told) == pytest.approx(expected)
    assert m4c_accuracy("Red.", told) == pytest.approx(expected)


def test_people_are_normalised_only_if_they_differ_and_words_of_theirs_never() -> None:
    assert vqa_accuracy("a cup", ["a cup"] * 10) == 0.0  # the article goes on one side alone
    assert vqa_accuracy("cup", ["cup!"] * 10) == 0.0
    assert vqa_accuracy("cup", ["cup !"] * 9 + ["mug"]) == 0.0  # removed, the space before it stays
    assert vqa_accuracy("two", ["two"] * 10) == 0.0
    assert m4c_accuracy("two", ["two"] * 10) == 1.0


@pytest.mark.parametrize(
    ("text", "official", "m4c"),
    [
        ("The Red bus.", "red bus", "red bus"),
        ("1,000", "1000", "1000"),
        ("dont", "don't", "don't"),
        ("it's", "it's", "it 's"),
        ("couldnt've", "couldn't've", "couldn't've"),
        ("3.5", "3.5", "3.5"),
        ("none", "0", "0"),
        ("blue-green", "blue green", "blue green"),
        ("a", "", ""),
    ],
)
def test_answers_are_normalised(text: str, official: str, m4c: str) -> None:
    assert (vqa_answer(text), m4c_answer(text)) == (official, m4c)


def test_vqav2_is_scored_on_val_by_answer_type(tmp_path: Path) -> None:
    report = scored(VQAV2, VQAV2.place(tmp_path), ["tennis", "3", "no"])
    assert report.tables["answer type"] == pytest.approx({"other": 100.0, "number": 30.0, "yes/no": 30.0})
    assert report.scores[0].kind == "official"


def test_the_vqa_rule_of_what_the_reference_submits_stands_beside(tmp_path: Path) -> None:
    """M4C's rule makes "man 's hat" of it, which is not what people said."""
    originals = json.loads(json.dumps(VQAV2.originals))
    originals["v2_mscoco_val2014_annotations.json"]["annotations"][1]["answers"] = people("man's hat")
    example = replace(VQAV2, originals=originals)
    report = scored(example, example.place(tmp_path), ["man's hat", "two", "yes"])
    assert [(one.kind, one.name) for one in report.scores] == [
        ("official", "accuracy"), ("reference", "accuracy as submitted"),
    ]  # fmt: skip
    assert [one.value for one in report.scores] == pytest.approx([100.0, 200 / 3])


@pytest.mark.parametrize("reference", [True, False], ids=["reference", "originals"])
def test_a_submission_to_vqav2_holds_all_of_test(reference: bool, tmp_path: Path) -> None:
    data = replace(VQAV2_TEST.place(tmp_path, reference=reference), submission=tmp_path / "up/tiny.json")
    if not reference:
        whole = {"questions": [{"question_id": number} for number in (419, 420, 421, 430)]}
        (tmp_path / "whole.json").write_text(json.dumps(whole))
        data = replace(data, files={"submission-questions": tmp_path / "whole.json"})
    scored(VQAV2_TEST, data)
    assert (tmp_path / "up/tiny.json").read_bytes() == (
        b'[{"question_id": 419, "answer": ""}, {"question_id": 420, "answer": "tennis"}, '
        b'{"question_id": 421, "answer": "2"}, {"question_id": 430, "answer": "yes"}]'
    )


def test_test_dev_is_answered_with_the_file_of_the_reference_alone(tmp_path: Path) -> None:
    data = VQAV2_TEST.place(tmp_path, reference=True)
    (tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json").unlink()
    assert scored(VQAV2_TEST, data).answered == 3


def test_a_submission_to_vizwiz_holds_all_images(tmp_path: Path) -> None:
    data = replace(VIZWIZ_TEST.place(tmp_path), submission=tmp_path / "up/tiny.json")
    scored(VIZWIZ_TEST, data)
    assert (tmp_path / "up/tiny.json").read_text() == (
        '[{"image": "VizWiz_test_0.jpg", "answer": "cup"}, '
        '{"image": "VizWiz_test_1.jpg", "answer": "it \'s 1000"}]'
    )
    with pytest.raises(UserError, match="1 questions have no answer.*VizWiz_test_1.*a submission holds all"):
        VIZWIZ_TEST.the_task().report(answers(VIZWIZ_TEST, data)[:1], data)


def test_no_answer_of_people_is_told(tmp_path: Path) -> None:
    rows = [row | {"answers": []} for row in VIZWIZ.originals["val.json"]]
    example = replace(VIZWIZ, originals={"val.json": rows})
    with pytest.raises(UserError, match="VizWiz_val_0.jpg: no person's answer is given"):
        scored(example, example.place(tmp_path))


def test_gqa_compares_strings_and_writes_what_its_own_program_reads(tmp_path: Path) -> None:
    data = replace(GQA.place(tmp_path), submission=tmp_path / "testdev_balanced_predictions.json")
    report = scored(GQA, data, ["Yes...", "a bus", "man"])
    assert report.scores[0].value == pytest.approx(200 / 3)
    assert report.tables["structural type"] == {"query": 50.0, "verify": 100.0}
    assert (tmp_path / "testdev_balanced_predictions.json").read_text() == (
        '[{"questionId": "201", "prediction": "yes"}, {"questionId": "202", "prediction": "a bus"}, '
        '{"questionId": "203", "prediction": "man"}]'
    )


def test_errors_are_clustered_by_image(tmp_path: Path) -> None:
    score = scored(GQA, GQA.place(tmp_path), ["yes", "bus", "nobody"]).scores[0]
    # residuals 1/3, 1/3 of one image and -2/3 of the other: sqrt(2 * 2 * (2/3)^2) / 3
    assert score.stderr == pytest.approx(100 * (2 * 2 * (2 / 3) ** 2) ** 0.5 / 3)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What Brand?\nReference OCR token: A, B\nAnswer shortly.", "what brand?"),
        ("Reference OCR token: A\nWhat Brand?\nAnswer shortly.", "what brand?"),
        ("OCR tokens: a, b. Question: What is it? Short answer:", "what is it?"),
        ("Who won?\nAnswer shortly.", "who won?"),
    ],
)
def test_the_question_of_a_prompt_is_found(prompt: str, question: str) -> None:
    assert question_of(prompt) == question


def test_textvqa_is_scored_without_the_tokens_and_not_asked_without_them(tmp_path: Path) -> None:
    data = TEXTVQA.place(tmp_path)
    records = answers(TEXTVQA, data)
    (tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    assert TEXTVQA.the_task().report(records, data).scores[0].value == pytest.approx(100.0)
    with pytest.raises(UserError, match="--ocr-file"):
        list(TEXTVQA.the_task().asks(data))


def test_science_qa_prompts_and_records(tmp_path: Path) -> None:
    data = SCIENCE_QA.place(tmp_path)
    shown, text = SCIENCE_QA.the_task().asks(data)
    letter = "\nAnswer with the option's letter from the given choices directly."
    assert (
        text.text
        == text.prompt
        == f"Context: N/A\nQuestion: Which is heavier?\nOptions: (A) fish (B) dog{letter}"
    )
    assert shown.prompt == f"<image>\n{shown.text}"
    assert not text.images


def test_science_qa_scores_images_first(tmp_path: Path) -> None:
    report = scored(SCIENCE_QA, SCIENCE_QA.place(tmp_path), ["C", "A. fish"])
    assert [(one.name, one.value, one.n) for one in report.scores] == [
        ("accuracy, questions with an image", 0.0, 1),
        ("accuracy, all questions", 50.0, 2),
    ]
    assert report.unparsable == 1  # there is no choice C


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("A.", None),
        ("B. dog", "B"),
        ("So The answer is C.", "C"),
        ("The answer is A", None),
        ("AB", None),
    ]
    + [("The answer is A. The answer is B.", None), ("", None), ("F", None)],
)
def test_science_qa_reads_answers_as_the_reference(text: str, letter: str | None) -> None:
    assert said_letter(text) == letter


def test_people_of_the_examples_are_ten() -> None:
    assert len(people("a", "b")) == 10
