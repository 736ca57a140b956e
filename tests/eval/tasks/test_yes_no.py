"""Yes or no: POPE against scikit-learn and its labels, MME against its official rule, the files it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from examples import MME, POPE
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score
from written import answers, scored, write

from llava.eval.tasks.rules import pope_says
from llava.eval.tasks.yes_no.counts import Counts
from llava.eval.tasks.yes_no.mme_points import says
from llava.utils import UserError


@settings(deadline=None)  # scikit-learn is slow where the machine is busy
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_rates_are_those_of_scikit_learn(pairs: list[tuple[bool, bool]]) -> None:
    counts = Counts()
    for said, truth in pairs:
        counts.add(said, truth)
    said, truth = zip(*pairs, strict=True)
    assert counts.f1 == pytest.approx(f1_score(truth, said, zero_division=0))
    assert counts.precision == pytest.approx(precision_score(truth, said, zero_division=0))
    assert counts.recall == pytest.approx(recall_score(truth, said, zero_division=0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No", "no"),
        ("NO", "yes"),
        ("There is not a cat. Yes", "no"),
        ("nope", "yes"),
        ("Well, no", "no"),
        ("", "yes"),
    ],
)
def test_pope_reads_answers_by_its_official_rule(text: str, said: str) -> None:
    assert pope_says(text) == said


def test_answers_to_pope_that_say_neither_widen_the_bounds(tmp_path: Path) -> None:
    first, accuracy = scored(POPE, POPE.place(tmp_path), ["Yes", "No", "Yes", "No", "a kite", "No"]).scores
    assert first.value == 100.0  # by the rule "a kite" is yes
    assert first.low == pytest.approx(200 / 3)
    assert (accuracy.value, accuracy.n) == (100.0, 6)


def test_as_many_labels_as_questions_are_expected(tmp_path: Path) -> None:
    data = POPE.place(tmp_path, reference=True)
    records = answers(POPE, data)
    write(tmp_path / "coco/coco_pope_random.json", [{"label": "yes"}])
    with pytest.raises(UserError, match="2 questions and 1 labels are random"):
        POPE.the_task().report(records, data)


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", "yes"), ("no.", "no"), ("  yes", "other"), (" no", "no"), ("know", "no"), ("It is", "other")],
)
def test_mme_reads_the_first_four_characters(text: str, said: str) -> None:
    assert says(text) == said


def test_mme_adds_accuracy_of_questions_and_of_images(tmp_path: Path) -> None:
    perception, cognition = scored(MME, MME.place(tmp_path), ["Yes", "Yes", "?", "no"]).scores
    assert (perception.value, perception.n, perception.unit) == (50.0, 2, "points")
    assert (cognition.low, cognition.value, cognition.high) == (50.0, 50.0, 200.0)


def test_the_error_of_mme_is_that_of_images(tmp_path: Path) -> None:
    lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    files = {f"MME_Benchmark_release_version/color/{number}.txt": lines for number in range(3)}
    example = replace(MME, originals=files)
    score = scored(example, example.place(tmp_path), ["yes", "no", "yes", "yes", "no", "yes"]).scores[0]
    # images earn 2, 0.5 and 0: the sample's standard deviation over sqrt(3), in percent
    assert score.value == pytest.approx(250 / 3)
    assert score.stderr == pytest.approx(100 * 1.0408329997330663 / 3**0.5)


def test_tabs_and_line_breaks_in_answers_do_not_break_the_files_of_mme(tmp_path: Path) -> None:
    data = replace(MME.place(tmp_path), submission=tmp_path / "up")
    report = scored(MME, data, ["Yes\tindeed\nit is", "no", "yes", "no"])
    assert sorted(path.name for path in report.written) == ["artwork.txt", "code_reasoning.txt"]
    lines = (tmp_path / "up/artwork.txt").read_text().splitlines()
    assert lines[0] == "10002.txt\tIs it  oil? Please answer yes or no.\tYes\tYes indeed it is"
    assert [len(line.split("\t")) for line in lines] == [4, 4]
