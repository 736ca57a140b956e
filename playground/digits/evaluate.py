"""The trained model and scikit-learn's SVC on the held-out half: answers and accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC

from llava.conversation import choose_template
from llava.eval.run.answering import answer_plan
from llava.eval.run.local import LocalModel
from llava.eval.run.plan import Plan
from llava.eval.tasks.base import TaskData
from llava.eval.tasks.digits import Digits, asks_of, is_right, read_questions
from llava.inference.model import LoadedModel
from llava.inference.sampling import SamplingParams
from llava.model.builder import best_dtype, load_pretrained_model
from playground.digits.images import load_halves
from playground.digits.questions import KINDS

BATCH_SIZE = 128

Question = dict[str, Any]  # id, kind, images, question, answer; `said` once the model has answered


def svc_accuracy() -> float:
    """Fit scikit-learn's SVC as its digits example does, on the same halves; returns its test accuracy."""
    train, test = load_halves()
    classifier = SVC(gamma=0.001)
    classifier.fit(_raw(train.ink), train.labels)
    return float(np.mean(classifier.predict(_raw(test.ink)) == test.labels))


def _raw(ink: np.ndarray) -> np.ndarray:
    return (ink * 16).reshape(len(ink), -1)  # the example's values, 0 to 16


class Answerer:
    """A loaded model, with its base when it is an adapter, that answers many short questions at once.

    as_merged: weights are rounded to float16 with the adapter in them, as scripts/merge_lora_weights.py does.
    An adapter on its base and the merged model are then the same numbers.
    """

    def __init__(
        self, model_path: Path, device: str, model_base: Path | None = None, *, as_merged: bool = False
    ) -> None:
        loaded = load_pretrained_model(
            str(model_path),
            None if model_base is None else str(model_base),
            model_path.name,
            device=device,
            device_map=None,
            torch_dtype=torch.float16 if as_merged else best_dtype(device),
        )
        model = loaded[1].to(device).eval()
        if as_merged and device == "cpu":
            model.float()  # only products: a CPU is slow in float16
        template, why = choose_template(model_path.name, model.config)
        self.asker = LocalModel(
            LoadedModel(*loaded),
            SamplingParams(temperature=0, max_new_tokens=Digits.max_new_tokens),
            model_id=model_path.name,
            conv_mode=template,
            why=why,
            batch_size=BATCH_SIZE,
        )


def answer_all(answerer: Answerer, questions: list[Question], image_folder: Path) -> list[Question]:
    """Answer every question as the task `digits` asks it; those of like lengths share a batch."""
    asks = list(asks_of(questions, image_folder))
    plan = Plan(Digits(), TaskData(image_folder.parent), asks, list(range(len(asks))), sources={})
    answered = answer_plan(plan, answerer.asker, None)
    said = {record["question_id"]: record["text"] for record in answered.records}
    return sorted(({**one, "said": said[one["id"]]} for one in questions), key=lambda one: one["id"])


def score(answered: list[Question]) -> tuple[dict[str, float], dict[str, int]]:
    """Count right answers: accuracy and number of questions of each kind."""
    accuracy, counts = {}, {}
    for kind in KINDS:
        rights = [is_right(one["said"], one["answer"]) for one in answered if one["kind"] == kind]
        accuracy[kind], counts[kind] = sum(rights) / len(rights), len(rights)
    return accuracy, counts


def evaluate(
    model_path: Path, data: Path, device: str, model_base: Path | None = None, *, as_merged: bool = False
) -> list[Question]:
    """Let the model answer the test questions; see Answerer."""
    questions = read_questions(data / "test.json")
    answerer = Answerer(model_path, device, model_base, as_merged=as_merged)
    return answer_all(answerer, questions, data / "images")
