"""The trained model and scikit-learn's SVC on the held-out half: answers and accuracies."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.svm import SVC

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import choose_template, conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import best_dtype, load_pretrained_model
from playground.digits.pictures import load_halves
from playground.digits.progress import Progress
from playground.digits.questions import KINDS, is_right

BATCH_SIZE = 128
MAX_NEW_TOKENS = 8

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
        self.tokenizer, self.model, self.processor, _ = load_pretrained_model(
            str(model_path),
            None if model_base is None else str(model_base),
            model_path.name,
            device=device,
            device_map=None,
            torch_dtype=torch.float16 if as_merged else best_dtype(device),
        )
        self.model.to(device).eval()
        if as_merged and device == "cpu":
            self.model.float()  # only products: a CPU is slow in float16
        self.template, _ = choose_template(model_path.name, self.model.config)

    def prompt_ids(self, question: str, images: int) -> list[int]:
        """Encode a question with the template of the checkpoint; image marks become IMAGE_TOKEN_INDEX."""
        marks = images - question.count(DEFAULT_IMAGE_TOKEN)
        conversation = conv_templates[self.template].copy()
        conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n" * marks + question)
        conversation.append_message(conversation.roles[1], None)
        return list(tokenizer_image_token(conversation.get_prompt(), self.tokenizer, IMAGE_TOKEN_INDEX))

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]], pictures: list[list[Image.Image]]) -> list[str]:
        """Answer prompts of one length greedily, each with the same number of pictures."""
        input_ids = torch.tensor(prompts, device=self.model.device)  # (n, length)
        flat = [picture for row in pictures for picture in row]
        images = None
        if flat:
            pixels = process_images(flat, self.processor, self.model.config)
            images = torch.stack(list(pixels)).to(self.model.device)  # (n_images, 3, H, W)
        new_ids = self.model.generate(
            input_ids,
            images=images,
            image_sizes=[picture.size for picture in flat] or None,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id or 0,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)]


def answer_all(answerer: Answerer, questions: list[Question], image_folder: Path) -> list[Question]:
    """Answer every question; prompts of one length share a batch, so that none is padded."""
    groups: dict[tuple[int, int], list[tuple[list[int], Question]]] = defaultdict(list)
    for question in questions:
        ids = answerer.prompt_ids(question["question"], len(question["images"]))
        groups[len(ids), len(question["images"])].append((ids, question))
    answered = []
    progress = Progress("test questions", len(questions), "questions")
    for group in groups.values():
        for start in range(0, len(group), BATCH_SIZE):
            part = group[start : start + BATCH_SIZE]
            pictures = [[_open(image_folder / name) for name in one["images"]] for _, one in part]
            texts = answerer.answer([ids for ids, _ in part], pictures)
            answered += [{**one, "said": text} for (_, one), text in zip(part, texts, strict=True)]
            progress.add(len(part))
    return sorted(answered, key=lambda one: one["id"])


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


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
    questions = json.loads((data / "test.json").read_text())
    answerer = Answerer(model_path, device, model_base, as_merged=as_merged)
    return answer_all(answerer, questions, data / "images")
