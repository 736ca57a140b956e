"""Benchmarks beyond the reference: ANLS, numbers within 5 %, whole figures, packed images, captions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from beyond import (
    AI2D,
    CHARTQA,
    COCO_CAPTION,
    DOCVQA,
    HALLUSIONBENCH,
    MATHVISTA,
    MMMU,
    NOCAPS,
    REALWORLDQA,
    parquet,
)
from written import scored

from llava.eval.tasks.base import PackedImage
from llava.eval.tasks.rules import yes_or_no
from llava.utils import UserError


def test_chartqa_tells_its_parts_apart(tmp_path: Path) -> None:
    report = scored(CHARTQA, CHARTQA.place(tmp_path), ["130", "Chad", "0.5"])
    assert report.tables["part"] == {"augmented": 100.0, "human": 50.0}


def test_docvqa_finds_pages_with_and_without_their_folder(tmp_path: Path) -> None:
    data = DOCVQA.place(tmp_path)
    ask, *_ = DOCVQA.the_task().asks(data)
    assert ask.images == (tmp_path / "spdocvqa_images/a_1.png",)
    (tmp_path / "spdocvqa_images/documents").mkdir(parents=True)
    (tmp_path / "spdocvqa_images/documents/a_1.png").touch()
    ask, *_ = DOCVQA.the_task().asks(data)
    assert ask.images == (tmp_path / "spdocvqa_images/documents/a_1.png",)


def test_docvqa_test_is_written_for_its_server(tmp_path: Path) -> None:
    rows = [{"questionId": 5, "question": "What?", "image": "documents/a.png"}]
    example = replace(DOCVQA, originals={"test_v1.0.json": {"data": rows}}, split="test", right=["It"])
    report = scored(example, replace(example.place(tmp_path), submission=tmp_path / "up.json"))
    assert report.scores == ()
    assert (tmp_path / "up.json").read_text() == '[{"questionId": 5, "answer": "It"}]'


def test_mmmu_shows_the_images_that_the_text_names(tmp_path: Path) -> None:
    choice, opened, _ = MMMU.the_task().asks(MMMU.place(tmp_path))
    assert len(choice.images) == 2 and len(opened.images) == 1
    image = choice.images[0]
    assert isinstance(image, PackedImage) and image.open().size == (1, 1)
    assert choice.text == (
        "See <image 1>. Which?\nA. $6\nB. <image 2>\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert opened.text.endswith("Answer the question using a single word or phrase.")


def test_mmmu_tells_subjects_apart_and_reads_open_answers(tmp_path: Path) -> None:
    report = scored(MMMU, MMMU.place(tmp_path), ["A", "It is 1200 dollars.", "A"])
    assert report.tables["subject"] == {"Art": 50.0, "Art_Theory": 100.0}
    assert report.tables["type"]["open"] == 100.0


def test_mathvista_asks_choices_alone(tmp_path: Path) -> None:
    data = MATHVISTA.place(tmp_path)
    assert [ask.id for ask in MATHVISTA.the_task().asks(data)] == ["1", "3"]
    assert any("no number to put beside" in note for note in scored(MATHVISTA, data).notes)


def test_realworldqa_asks_as_its_questions_stand(tmp_path: Path) -> None:
    report = scored(REALWORLDQA, REALWORLDQA.place(tmp_path), ["Three", "Right"])
    assert [one.credit for one in report.graded] == [0.0, 1.0]


def test_ai2d_takes_the_listed_images(tmp_path: Path) -> None:
    asks = list(AI2D.the_task().asks(AI2D.place(tmp_path)))
    assert [ask.images[0] for ask in asks] == [tmp_path / "images/0.png", tmp_path / "images/3.png"]


def test_figures_and_questions_of_hallusionbench_count_as_wholes(tmp_path: Path) -> None:
    data = HALLUSIONBENCH.place(tmp_path)
    asks = list(HALLUSIONBENCH.the_task().asks(data))
    assert [len(ask.images) for ask in asks] == [1, 1, 1, 0]
    scores = scored(HALLUSIONBENCH, data, ["yes", "yes", "yes", "yes"]).scores
    # wrong: question 0 of figure 2; figures are VD/1 and VD/2, questions VD/0, VD/1 and VS/0
    assert [(round(one.value, 1), one.n) for one in scores] == [(75.0, 4), (50.0, 2), (66.7, 3)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes.", "yes"),
        ("It is not; no", "no"),
        ("yes and no", "yes"),
        ("Is it? yes or no", None),
        ("maybe", None),
    ],
)
def test_yes_and_no_are_read_and_never_guessed(text: str, said: str | None) -> None:
    assert yes_or_no(text) == said


def test_captions_are_scored_and_written(tmp_path: Path) -> None:
    """Of "a dog" two words are in "a big dog runs": 2 / (sqrt 2 * 2) for one of the four sizes of n-grams."""
    data = replace(COCO_CAPTION.place(tmp_path), submission=tmp_path / "up.json")
    report = scored(COCO_CAPTION, data, ["a dog", "a cat "])
    (score,) = report.scores
    assert (score.name, score.kind, score.unit, score.n) == ("CIDEr-D", "approximate", "points", 2)
    shorter = math.exp(-(2**2) / 72)
    dog, cat = 1000 * shorter * 2 / (2 * 2**0.5) / 4, 1000 * shorter * 1 / (2 * 2**0.5) / 4
    assert score.value == pytest.approx((dog + cat) / 2) and "tokenizer in Java" in report.notes[-1]
    assert (tmp_path / "up.json").read_text() == (
        '[{"image_id": 42, "caption": "a dog"}, {"image_id": 7, "caption": "a cat"}]'
    )


def test_captions_of_people_that_lack_are_no_score(tmp_path: Path) -> None:
    data = replace(NOCAPS.place(tmp_path), submission=tmp_path / "up.json")
    report = scored(NOCAPS, data)
    assert report.scores == () and "holds no captions: CIDEr-D is not counted" in report.notes[-1]
    assert json.loads((tmp_path / "up.json").read_text())[0] == {"image_id": 42, "caption": "a dog"}


def test_parquet_files_that_are_broken_or_of_another_kind_are_told(tmp_path: Path) -> None:
    parquet(tmp_path, "data/testmini-0.parquet", [{"pid": "1"}])
    data = replace(MATHVISTA, build=None).place(tmp_path)
    with pytest.raises(UserError, match="testmini-0.parquet has no column question"):
        list(MATHVISTA.the_task().asks(data))
    (tmp_path / "data/testmini-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="testmini-0.parquet is no readable parquet file"):
        list(MATHVISTA.the_task().asks(data))
    (tmp_path / "data/testmini-0.parquet").unlink()
    with pytest.raises(UserError, match="holds no file testmini"):
        list(MATHVISTA.the_task().asks(data))
