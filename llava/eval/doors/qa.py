"""Answers to text questions, as Vicuna-80's."""

from __future__ import annotations

import argparse

from llava.eval.run.asking_files import answer_file
from llava.eval.tasks.judged.vicuna80 import Vicuna80


def eval_model(model_name: str, questions_file: str, answers_file: str) -> int:
    """Answer the questions of a file at temperature 0.7; returns the exit code, 1 where one has no answer."""
    asked = argparse.Namespace(
        model_path=model_name,
        question_file=questions_file,
        answers_file=answers_file,
        image_folder="",
        conv_mode=Vicuna80.conv_mode,
        temperature=Vicuna80.temperature,
        num_chunks=1,
        chunk_idx=0,
    )
    return answer_file(asked, max_new_tokens=Vicuna80.max_new_tokens, task=Vicuna80())
