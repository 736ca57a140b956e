"""The quickstart's data, models and report: splits, answers, masks, reuse. Trains nothing for long."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.tokenizer import load_tokenizer
from llava.train.args import parse_args
from llava.train.labels.preprocess import preprocess
from llava.train.records import find_fault
from llava.utils import UserError
from playground import steps
from playground.digits import data as data_module
from playground.digits import (
    evaluate,
    exported,
    language,
    progress,
    report,
    table,
    tower,
    training,
)
from playground.digits.images import distort, load_halves, render
from playground.digits.questions import (
    KINDS,
    answer_two,
    caption,
    is_right,
    one_image_dialog,
    split_text_questions,
    text_questions,
)

TINY_LANGUAGE = language.LanguageRecipe(
    hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, steps=2, batch_size=4
)
TINY_TOWER = tower.TowerRecipe(hidden_size=32, num_layers=2, num_heads=2, steps=3, batch_size=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's data with one distorted copy of each image and few pairs."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "VARIANTS", 1)
        patch.setattr(data_module, "PAIRS", 50)
        data_module.make_data(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llm")
    language.make_tokenizer(folder, language.LanguageRecipe())
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def _records(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text())


def _images(record: dict[str, Any]) -> list[str]:
    image = record.get("image", record.get("images", []))
    return [image] if isinstance(image, str) else image


# ---- the split ----


def test_halves_are_those_of_scikit_learns_example() -> None:
    sklearn = pytest.importorskip("sklearn.model_selection")
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.images.reshape(len(digits.images), -1)
    x_train, x_test, y_train, y_test = sklearn.train_test_split(
        pixels, digits.target, test_size=0.5, shuffle=False
    )
    train, test = load_halves()
    assert np.array_equal(train.ink.reshape(len(y_train), -1) * 16, x_train)
    assert np.array_equal(test.ink.reshape(len(y_test), -1) * 16, x_test)
    assert np.array_equal(train.labels, y_train) and np.array_equal(test.labels, y_test)
    assert test.first == len(y_train)


def test_no_image_of_the_test_half_is_used_for_training(made: Path) -> None:
    first_test = load_halves()[1].first
    for name in ("pretrain", "finetune"):
        used = {image for record in _records(made, name) for image in _images(record)}
        assert used and all(image.startswith("train/") for image in used)
        assert all(int(Path(image).stem.partition("_")[0]) < first_test for image in used)
    asked = {image for record in _records(made, "test") for image in _images(record)}
    assert asked and all(image.startswith("test/") for image in asked)


def test_training_images_hold_only_the_training_half(made: Path) -> None:
    expected = (render(load_halves()[0].ink) * 255).round().to(torch.uint8).numpy()
    for index in (0, 1, 450, 897):
        assert np.array_equal(np.asarray(Image.open(made / f"images/train/{index:04d}.png")), expected[index])
    assert not (made / "images/train/0898.png").exists()


def test_no_text_question_of_the_test_is_trained_on(made: Path) -> None:
    train, test = split_text_questions()
    assert not {one.text for one in train} & {one.text for one in test}
    assert len(train) + len(test) == len(text_questions()) and len(test) > 100
    asked = {turn["value"] for record in _records(made, "finetune") for turn in record["conversations"]}
    assert not asked & {one.text for one in test}


# ---- records ----


def test_records_are_valid_and_answered_rightly(made: Path) -> None:
    train, _ = load_halves()
    for record in _records(made, "pretrain") + _records(made, "finetune"):
        assert find_fault(record) == ""
        marks = sum(turn["value"].count("<image>") for turn in record["conversations"])
        assert marks == len(_images(record))
        digits = [int(train.labels[int(Path(image).stem[:4])]) for image in _images(record)]
        turns = record["conversations"]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if "sum" in question["value"] and len(digits) == 2:
                assert answer["value"] == str(sum(digits))
            if question["value"].endswith("Which digit is this?"):
                assert answer["value"] == str(digits[0])


def test_the_test_asks_every_kind_about_every_image(made: Path) -> None:
    questions = _records(made, "test")
    counts = {kind: sum(one["kind"] == kind for one in questions) for kind in KINDS}
    assert all(counts[kind] == 899 for kind in KINDS if kind != "text")
    assert len({one["id"] for one in questions}) == len(questions)


@pytest.mark.parametrize(
    ("first", "second", "answer"), [(3, 7, "the second"), (9, 0, "the first"), (4, 4, "neither")]
)
def test_which_is_larger(first: int, second: int, answer: str) -> None:
    assert answer_two("which_larger", first, second) == answer


def test_answers_are_compared_whole() -> None:
    assert is_right("The first.", "the first") and is_right(" 7 ", "7")
    assert not is_right("17", "7") and not is_right("", "7")


def test_distortion_is_seeded_small_and_keeps_the_paper_white() -> None:
    images = render(load_halves()[0].ink[:32])
    one = distort(images, torch.Generator().manual_seed(1))
    again = distort(images, torch.Generator().manual_seed(1))
    assert torch.equal(one, again) and one.shape == images.shape
    assert one.min() >= 0 and one.max() <= 1
    change = (one - images).abs().mean()
    assert 0.01 < change < 0.3


# ---- models ----


def test_every_answer_of_a_dialog_is_trained_on(tokenizer: Any) -> None:
    rng = random.Random(0)
    for digit in range(10):
        turns = one_image_dialog(digit, rng)
        record = data_module.dialog_record("x", turns, image="a.png")
        labels = preprocess([record["conversations"]], tokenizer, has_image=True, conv=conv_templates["v1"])[
            "labels"
        ][0]
        kept = tokenizer.decode(labels[labels != IGNORE_INDEX])
        assert kept.replace(" ", "") == "".join(f"{turn.answer}</s>" for turn in turns).replace(" ", "")


def test_words_take_the_place_of_images(tokenizer: Any) -> None:
    for text in language.make_texts(random.Random(0), 50):
        ids, labels = language.encode(text, tokenizer)
        assert len(ids) == len(labels) and min(ids) >= 0
        assert any(label != IGNORE_INDEX for label in labels)
        decoded = tokenizer.decode(ids)
        assert all(words in decoded for words in text.shown)


def test_language_model_folder_is_an_ordinary_one(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    language.make_language_model(tmp_path, TINY_LANGUAGE)
    tokenizer = load_tokenizer(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer(caption(7, 0)).input_ids, skip_special_tokens=True) == caption(7, 0)


def test_tower_folder_is_read_by_the_library_and_is_the_same_each_time(tmp_path: Path) -> None:
    train, _ = load_halves()
    small = dataclasses.replace(train, ink=train.ink[:40], labels=train.labels[:40])
    first, again = tower.train_tower(small, TINY_TOWER), tower.train_tower(small, TINY_TOWER)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    tower.save_tower(first, tmp_path)
    settings = type("Settings", (), {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"})()
    loaded = CLIPVisionTower(str(tmp_path), settings)
    images = tower.tower_images(small)[:2]
    png = [Image.fromarray((image * 255).round().to(torch.uint8).numpy()).convert("RGB") for image in images]
    pixels = torch.stack(
        [loaded.image_processor.preprocess(one, return_tensors="pt")["pixel_values"][0] for one in png]
    )
    assert torch.allclose(pixels, tower.normalise(images), atol=0.02)
    with torch.no_grad():
        expected = first.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.allclose(loaded(pixels), expected, atol=1e-5)


# ---- the steps ----


@pytest.mark.parametrize("stage", training.STAGES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_training_accepts_the_command_line(stage: str, device: str, tmp_path: Path) -> None:
    words = training.command(stage, tmp_path, device)
    assert words[1] == "llava/train/train_mem.py"
    if device == "cuda":  # bf16 and tf32 are refused where there is no GPU
        words = [word for word in words[2:] if word not in ("--bf16", "--tf32")]
        words = [
            word for index, word in enumerate(words) if word != "True" or words[index - 1].startswith("--")
        ]
        parse_args(words)
    else:
        parse_args(words[2:])


def test_a_step_is_reused_until_its_key_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[int] = []
    for key in ("a", "a", "b"):
        _, outcome = steps.once(tmp_path, "data", key, lambda: runs.append(1) or len(runs))
        assert outcome == len(runs)
    assert len(runs) == 2
    assert "reused" in capsys.readouterr().out


def test_an_unknown_device_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="--device is 'tpu'; expected cpu, cuda"):
        steps.check_device("tpu")


def test_svc_reaches_what_its_example_reports() -> None:
    assert evaluate.svc_accuracy() == pytest.approx(0.969, abs=0.002)


def test_scores_table_and_sheet(made: Path, tmp_path: Path) -> None:
    answered = [{**one, "said": one["answer"]} for one in _records(made, "test")]
    for one in answered[:9]:
        one["said"] = "?"
    accuracy, counts = evaluate.score(answered)
    assert accuracy["which_digit"] == pytest.approx(890 / 899) and accuracy["sum"] == 1.0
    text = table.table(accuracy, counts, 0.969)
    assert "0.9900" in text and "0.9690" in text and "899" in text
    chosen = report.choose_examples(answered)
    assert [len(examples) for examples in chosen.values()] == [8, 4, 4, 4, 4, 8]
    shown = [one for examples in chosen.values() for one in examples]
    assert sum(one["said"] == "?" for one in shown) == 9 and len({one["id"] for one in shown}) == len(shown)
    report.image_sheet(answered, made / "images", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 800


def test_texts_of_the_sheet_keep_to_their_places(made: Path) -> None:
    questions = [one["question"].replace("<image>", "").strip() for one in _records(made, "test")]
    for text in (*questions, "a question that never ends " * 20):
        lines = report._wrap(text).split("\n")
        assert len(lines) <= 3 and max(map(len, lines)) <= 26
    assert len(report._cut("a very long answer to a short question")) <= 15


def test_a_step_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 2))  # each step takes two seconds
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    steps = progress.Progress("tower", 10)
    for _ in range(10):
        steps.add(note="loss 1.0")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # every six seconds, and the last
    assert "3/10 steps, loss 1.0" in lines[0] and "14 s left" in lines[0]
    assert "10/10 steps" in lines[-1] and "left" not in lines[-1]


def test_another_answer_of_transformers_is_no_export(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = [{**one, "said": one["answer"]} for one in _records(made, "test")]
    asked: list[list[dict[str, str]]] = []

    def transformers(words: list[str], *, input: str, **named: Any) -> Any:
        asked.append(json.loads(input))
        by_image = {one["images"][0]: one["said"] for one in answered if one["kind"] == "which_digit"}
        said = [by_image[question["image"]] for question in asked[-1]]
        if len(asked) > 1:
            said[7] = "none"
        return SimpleNamespace(stdout=json.dumps(said))

    monkeypatch.setattr(exported.subprocess, "run", transformers)
    assert exported.ask_transformers(tmp_path, answered, made) == {"same_answers": 100, "of": 100}
    assert len({question["image"] for question in asked[0]}) == 100
    with pytest.raises(UserError, match="the same answer to 99 of 100 digits"):
        exported.ask_transformers(tmp_path, answered, made)
