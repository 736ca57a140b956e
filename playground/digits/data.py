"""LLaVA-format JSON and PNG files from the digits: captions, questions, and the questions of the test."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from playground.digits.images import Digits, distort, load_halves, render, write_images
from playground.digits.questions import (
    ONE_IMAGE,
    TWO_IMAGES,
    Question,
    ask_one,
    ask_two,
    caption,
    one_image_dialog,
    split_text_questions,
    two_image_dialog,
)

SEED = 2023
VARIANTS = 4  # distorted copies of each training image, beside the image itself
PAIRS = 5000  # two-image records for training

Record = dict[str, Any]


def make_data(folder: Path, halves: tuple[Digits, Digits] | None = None) -> dict[str, int]:
    """Write images/, pretrain.json, finetune.json and test.json; returns how many of each there are.

    halves: what to train on and what to ask about; the halves of scikit-learn's example unless given.
    """
    (folder / "images" / "train").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "test").mkdir(parents=True, exist_ok=True)
    train, test = halves or load_halves()
    shown = _write_training_images(folder, train)
    test_names = [f"test/{test.first + index:04d}.png" for index in range(len(test.labels))]
    write_images(render(test.ink), [folder / "images" / name for name in test_names])
    rng = random.Random(SEED)
    text_train, text_test = split_text_questions()
    sets = {
        "pretrain": caption_records(shown, rng),
        "finetune": question_records(shown, text_train, rng),
        "test": exam_questions(list(zip(test_names, map(int, test.labels), strict=True)), text_test, rng),
    }
    for name, records in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=1) + "\n")
    return {
        "pictures": len(shown) + len(test_names),
        **{name: len(records) for name, records in sets.items()},
    }


def _write_training_images(folder: Path, train: Digits) -> list[tuple[str, int]]:
    """Write each image of the training half and its distorted copies; returns (name, digit) of each."""
    generator = torch.Generator().manual_seed(SEED)
    plain = render(train.ink)
    shown: list[tuple[str, int]] = []
    for variant in range(VARIANTS + 1):
        mark = f"_{variant}" if variant else ""
        names = [f"train/{index:04d}{mark}.png" for index in range(len(train.labels))]
        images = distort(plain, generator) if variant else plain
        write_images(images, [folder / "images" / name for name in names])
        shown += zip(names, map(int, train.labels), strict=True)
    return shown


def caption_records(shown: list[tuple[str, int]], rng: random.Random) -> list[Record]:
    """Make stage 1 records: an image and what it shows, in words."""
    return [
        {
            "id": f"caption-{name}",
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the picture."},
                {"from": "gpt", "value": caption(digit, rng.randrange(99))},
            ],
        }
        for name, digit in shown
    ]


def question_records(
    shown: list[tuple[str, int]], text_train: list[Question], rng: random.Random
) -> list[Record]:
    """Make stage 2 records: dialogs about one image, about two images, and without any."""
    records = [
        dialog_record(f"one-{name}", one_image_dialog(digit, rng), image=name) for name, digit in shown
    ]
    for number in range(PAIRS):
        (first, a), (second, b) = rng.choice(shown), rng.choice(shown)
        if number % 5 == 0:  # equal digits would be one in ten: too few to learn "neither" from
            second, b = rng.choice([one for one in shown if one[1] == a])
        records.append(dialog_record(f"two-{number}", two_image_dialog(a, b, rng), image=[first, second]))
    records += [dialog_record(f"text-{number}", [question]) for number, question in enumerate(text_train)]
    return records


def dialog_record(name: str, turns: list[Question], *, image: str | list[str] | None = None) -> Record:
    """Make a LLaVA-format record of a dialog."""
    conversations = []
    for turn in turns:
        conversations += [{"from": "human", "value": turn.text}, {"from": "gpt", "value": turn.answer}]
    record: Record = {"id": name, "conversations": conversations}
    if image is not None:
        record["image"] = image
    return record


def exam_questions(
    shown: list[tuple[str, int]], text_test: list[Question], rng: random.Random
) -> list[Record]:
    """Make the test: every kind about every held-out image, pairs of held-out images, held-out text."""
    asked: list[tuple[list[str], Question]] = []
    for kind in ONE_IMAGE:
        asked += [([name], ask_one(kind, digit, i)) for i, (name, digit) in enumerate(shown)]
    for kind in TWO_IMAGES:
        others = rng.sample(shown, k=len(shown))
        asked += [
            ([first, second], ask_two(kind, a, b, i))
            for i, ((first, a), (second, b)) in enumerate(zip(shown, others, strict=True))
        ]
    asked += [([], question) for question in text_test]
    return [
        {"id": i, "kind": one.kind, "images": images, "question": one.text, "answer": one.answer}
        for i, (images, one) in enumerate(asked)
    ]
