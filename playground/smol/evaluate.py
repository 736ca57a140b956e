"""The trained model on easy-VQA's test split, with the images and without, beside answers without looking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.run.python import evaluate, task_data
from llava.eval.tasks.custom import Custom, exact
from llava.inference.loading import open_model
from llava.inference.model import LoadedModel
from playground.smol import tower  # noqa: F401  (registers the tower)
from playground.smol.data import KINDS, Record, majority, read_questions

BATCH_SIZE = 32
MAX_NEW_TOKENS = 6


def read_lines(file: Path) -> list[Record]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ask(loaded: LoadedModel, questions: Path, images: Path, answers: Path) -> dict[str, str]:
    """Ask the lines of a question file as `llava.eval custom` does; answers by their ids.

    answers: a file that is resumed.
    """
    task = Custom()
    where = task_data(task, images, files={"question-file": questions, "image-folder": images})
    found = evaluate(
        loaded,
        task,
        data=where,
        answers=answers,
        batch_size=BATCH_SIZE,
        quiet=False,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    return {str(one["question_id"]): str(one["text"]) for one in found.records}


def examine(model: Path, data: Path, work: Path, device: str) -> list[Record]:
    """Return the lines of the test with what was `said`, and what was said without the image (`blind`).

    Without an image an answer depends on the text alone: each text is asked once.
    """
    loaded = open_model(str(model), device=device)
    said = ask(loaded, data / "test.jsonl", data / "images", work / "answers.jsonl")
    blind = ask(loaded, data / "blind.jsonl", data / "images", work / "answers-blind.jsonl")
    lines = read_lines(data / "test.jsonl")
    return [{**one, "said": said[str(one["question_id"])], "blind": blind[one["text"]]} for one in lines]


def score(answered: Sequence[Record], by: str = "said") -> dict[str, float]:
    """Return the accuracy of all answers, and of those of each kind."""
    rights = {kind: [_is_right(one, by) for one in answered if one["kind"] == kind] for kind in KINDS}
    rights = {"all": [_is_right(one, by) for one in answered], **rights}
    return {kind: round(sum(some) / len(some), 4) for kind, some in rights.items() if some}


def _is_right(line: Record, by: str) -> bool:
    return bool(exact(line[by], [line["answer"]]))


def summary(answered: Sequence[Record], package: Path) -> dict[str, Any]:
    """Return accuracies, counts, and what answers without looking reach. package: easy-VQA's data."""
    guesses: Mapping[str, float] = majority(read_questions(package, "train"), answered)
    counts = {kind: sum(one["kind"] == kind for one in answered) for kind in KINDS}
    return {
        "accuracy": score(answered),
        "n": {"all": len(answered), **counts},
        "without_image": score(answered, "blind"),
        "most_frequent": {name: round(value, 4) for name, value in guesses.items()},
    }
