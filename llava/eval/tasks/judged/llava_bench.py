"""LLaVA-Bench (in the wild): 60 questions about 24 images; a judge scores the model beside GPT-4."""

from __future__ import annotations

from typing import ClassVar

from llava.eval.judges.pairs import BENCH_STYLE
from llava.eval.tasks.base import Ask, DataFile, Record, TaskData
from llava.eval.tasks.judged.pairs import PairTask

_URL = "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
_LICENCE = "none is stated"


class LlavaBench(PairTask):
    """scripts/v1_5/eval/llavabench.sh: vicuna_v1, greedy; summarize_gpt_review prints the same ratio."""

    name = "llava_bench"
    title = "LLaVA-Bench (wild)"
    folder = "llava-bench-in-the-wild"
    style = BENCH_STYLE
    data: ClassVar = (
        DataFile("question-file", "questions.jsonl", "the questions", _URL, _LICENCE, count=60),
        DataFile("image-folder", "images", "the images", _URL, _LICENCE),
        DataFile("context", "context.jsonl", "the captions that stand for the images", _URL, _LICENCE),
        DataFile("reference-answers", "answers_gpt4.jsonl", "GPT-4's answers", _URL, _LICENCE, count=60),
    )

    def ask_of(self, row: Record, data: TaskData) -> Ask:
        """Return a question; its image is its group."""
        key, image = row["question_id"], str(row["image"])
        assert isinstance(key, str | int)
        return Ask(key, str(row["text"]), (data.place(self, "image-folder") / image,), group=image)
