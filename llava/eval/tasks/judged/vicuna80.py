"""Vicuna-80: questions without images; a judge scores the model beside another one's answers."""

from __future__ import annotations

from typing import ClassVar

from llava.eval.judges.pairs import TEXT_STYLE
from llava.eval.tasks.base import Ask, DataFile, Record, Said, TaskData
from llava.eval.tasks.judged.pairs import PairTask

_URL = "https://github.com/haotian-liu/LLaVA/tree/main/llava/eval/table"


class Vicuna80(PairTask):
    """The reference's model_qa: its default template, temperature 0.7, records without the prompt."""

    name = "vicuna80"
    title = "Vicuna-80"
    style = TEXT_STYLE
    conv_mode = "vicuna_v1"
    temperature = 0.7
    data: ClassVar = (
        DataFile("question-file", "question.jsonl", "the questions", _URL, "Apache-2.0 (FastChat)", count=80),
        DataFile(
            "reference-answers",
            "answer_gpt35.jsonl",
            "answers to measure by, of qa_baseline_gpt35 or another model",
            f"{_URL}/answer",
            "Apache-2.0 (FastChat)",
        ),
    )

    def ask_of(self, row: Record, data: TaskData) -> Ask:
        """Return a question."""
        key = row["question_id"]
        assert isinstance(key, str | int)
        return Ask(key, str(row["text"]))

    def record(self, ask: Ask, said: Said) -> Record:
        """Return the reference's record of model_qa."""
        return {
            "question_id": ask.id,
            "text": said.text,
            "answer_id": said.answer_id,
            "model_id": said.model_id,
            "metadata": {},
        }
