"""easy-VQA as LLaVA-format JSON: captions of stage 1, dialogs of stage 2, question files of the test."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN

SEED = 2023
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
KINDS = {"yes_no": "yes or no", "shape": "which shape", "colour": "which colour"}

Record = dict[str, Any]


class Question(NamedTuple):
    """A question of easy-VQA: its text, its answer, and the number of its image."""

    text: str
    answer: str
    image: int


@dataclass(frozen=True)
class Sizes:
    """How much of easy-VQA is used: the first images of each split, and questions of a dialog."""

    caption_images: int = 4000
    dialog_images: int = 1200
    dialog_length: int = 4  # questions of one image in a dialog
    dialogs_per_image: int = 1
    test_images: int = 1000  # all of them


def read_questions(data: Path, split: str) -> list[Question]:
    """Read the questions of a split ("train", "test") of the unpacked package."""
    rows = json.loads((data / split / "questions.json").read_text(encoding="utf-8"))
    return [Question(*row) for row in rows]


def kind_of(question: Question) -> str:
    """Say what a question asks for, by its answer: one of KINDS."""
    if question.answer in ("yes", "no"):
        return "yes_no"
    return "shape" if question.answer in SHAPES else "colour"


def by_image(questions: Iterable[Question]) -> dict[int, list[Question]]:
    """Group questions by the number of their image, in the order of the numbers."""
    found: dict[int, list[Question]] = defaultdict(list)
    for one in questions:
        found[one.image].append(one)
    return dict(sorted(found.items()))


def caption(questions: Iterable[Question]) -> str | None:
    """Say what an image shows as far as its questions and answers tell; None where they tell nothing.

    "is there a red shape? yes" tells as much as "what color is the shape? red"; so does "is there not a red
    shape? no".
    """
    known: set[str] = set()
    for one in questions:
        if one.answer in (*SHAPES, *COLOURS):
            known.add(one.answer)
        negated = re.search(r"\b(?:not|no)\b", one.text) is not None
        if one.answer == ("no" if negated else "yes") or one.answer not in ("yes", "no"):
            known.update(word for word in re.findall(r"\w+", one.text) if word in (*SHAPES, *COLOURS))
    colour = next((word for word in COLOURS if word in known), "")
    shape = next((word for word in SHAPES if word in known), "shape")
    return None if not colour and shape == "shape" else " ".join(filter(None, ("a", colour, shape)))


def caption_records(questions: Sequence[Question], images: int) -> list[Record]:
    """Make stage 1 records: an image and what is known of it, in words."""
    records = []
    for image, asked in list(by_image(questions).items())[:images]:
        if said := caption(asked):
            turns = [_turn("human", f"{DEFAULT_IMAGE_TOKEN}\nDescribe the image."), _turn("gpt", said)]
            records.append({"id": f"caption-{image}", "image": f"train/{image}.png", "conversations": turns})
    return records


def dialog_records(questions: Sequence[Question], sizes: Sizes, rng: random.Random) -> list[Record]:
    """Make stage 2 records: some questions of one image in a dialog, in any order.

    Half of them ask what there is, as far as there are such questions: "yes" and "no" can be guessed.
    """
    records = []
    for image, asked in list(by_image(questions).items())[: sizes.dialog_images]:
        mixed = rng.sample(asked, k=len(asked))
        open_ones = [one for one in mixed if kind_of(one) != "yes_no"]
        closed = [one for one in mixed if kind_of(one) == "yes_no"]
        for number in range(sizes.dialogs_per_image):
            part = [open_ones.pop() for _ in range(min(len(open_ones), sizes.dialog_length // 2))]
            part += [closed.pop() for _ in range(min(len(closed), sizes.dialog_length - len(part)))]
            rng.shuffle(part)
            turns: list[dict[str, str]] = []
            for one in part:
                text = one.text if turns else f"{DEFAULT_IMAGE_TOKEN}\n{one.text}"
                turns += [_turn("human", text), _turn("gpt", one.answer)]
            if turns:
                name = f"dialog-{image}-{number}"
                records.append({"id": name, "image": f"train/{image}.png", "conversations": turns})
    return records


def _turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def test_lines(questions: Sequence[Question], images: int) -> list[Record]:
    """Make the lines of the test's question file, in the format of `llava.eval custom`."""
    used = set(list(by_image(questions))[:images])
    return [
        {
            "question_id": number,
            "image": f"test/{one.image}.png",
            "text": one.text,
            "answer": one.answer,
            "kind": kind_of(one),
        }
        for number, one in enumerate(questions)
        if one.image in used
    ]


def blind_lines(lines: Sequence[Record]) -> list[Record]:
    """Make a question file without images: each text once, its answer the most frequent one of `lines`."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for one in lines:
        answers[one["text"]][one["answer"]] += 1
    return [
        {"question_id": text, "text": text, "answer": counts.most_common(1)[0][0]}
        for text, counts in sorted(answers.items())
    ]


def majority(questions: Sequence[Question], lines: Sequence[Record]) -> dict[str, float]:
    """Return the accuracy on `lines` of the training split's most frequent answer, without looking.

    by_kind: one answer for each kind of question; by_text: one for each text, the most that words tell.
    """
    found = {}
    for name, keys in (("by_kind", _kinds), ("by_text", _texts)):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for question in questions:
            counts[keys({"text": question.text, "kind": kind_of(question)})][question.answer] += 1
        usual = {key: one.most_common(1)[0][0] for key, one in counts.items()}
        found[name] = sum(usual.get(keys(one)) == one["answer"] for one in lines) / len(lines)
    return found


def _kinds(line: Mapping[str, str]) -> str:
    return line["kind"]


def _texts(line: Mapping[str, str]) -> str:
    return line["text"]


def make_data(data: Path, folder: Path, sizes: Sizes) -> dict[str, int]:
    """Write images/, pretrain.json, finetune.json, test.jsonl and blind.jsonl; returns the counts of each.

    data: the folder of the unpacked package.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for split in ("train", "test"):
        shutil.copytree(data / split / "images", folder / "images" / split)
    train, test = read_questions(data, "train"), read_questions(data, "test")
    records = {
        "pretrain": caption_records(train, sizes.caption_images),
        "finetune": dialog_records(train, sizes, random.Random(SEED)),
    }
    for name, content in records.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = {"test": test_lines(test, sizes.test_images)}
    lines["blind"] = blind_lines(lines["test"])
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = sum(len(record["conversations"]) // 2 for record in records["finetune"])
    return {
        "captions": len(records["pretrain"]),
        "dialogs": len(records["finetune"]),
        "questions in them": asked,
        "test questions": len(lines["test"]),
    }
