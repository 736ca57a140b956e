"""Asking the questions of a file, as the answering programs of the reference do; loads torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.arguments import ProgramParser
from llava.eval.run.answering import answer_plan
from llava.eval.run.doors import get_chunk
from llava.eval.run.flags import DONE, INCOMPLETE, add_answer_flags, add_model_flags
from llava.eval.run.opening import Opener
from llava.eval.run.plan import make_plan
from llava.eval.tasks.base import Ask, Option, Record, Report, TaskData
from llava.eval.tasks.questions import QuestionTask, image_folder, question_file
from llava.lines import LineFile
from llava.utils import UserError


class QuestionFile(QuestionTask):
    """The questions of a file in the reference's format: JSON lines of question_id, image and text."""

    name = "questions"
    title = "questions"
    ids_repeat = True
    max_new_tokens = 1024
    temperature = 0.2
    data = (
        question_file("question.jsonl"),
        image_folder(".", "the folder of the images", ""),
    )
    options = (Option("num-chunks", "parts", "1"), Option("chunk-idx", "the part that is asked", "0"))

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions of this run's part."""
        n, k = int(data.options.get("num-chunks", "1")), int(data.options.get("chunk-idx", "0"))
        yield from get_chunk(list(self.from_reference(data)), n, k)

    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Raise UserError: there are no other files."""
        raise UserError("the question file is the only source of these questions")

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Raise UserError: nothing is known about right answers."""
        raise UserError(
            "a file of questions holds no right answers; score with a task, see `llava.eval list`"
        )


def answer_file(args: argparse.Namespace, *, max_new_tokens: int) -> int:
    """Ask the part of a file that the flags name; returns the exit code, 1 where a question has no answer."""
    task = QuestionFile()
    chunk = {"num-chunks": str(args.num_chunks), "chunk-idx": str(args.chunk_idx)}
    files = {"question-file": Path(args.question_file), "image-folder": Path(args.image_folder)}
    data = TaskData(Path(args.question_file).parent, files=files, options=chunk)
    if not list(task.asks(data)) and list(task.from_reference(data)):
        LineFile(args.answers_file).append(())  # more parts than questions: this one is empty
        return DONE
    plan = make_plan(task, data)
    usual = ProgramParser(prog="usual")
    add_model_flags(usual)
    add_answer_flags(usual)
    given = vars(usual.parse_args([])) | vars(args) | {"max_new_tokens": max_new_tokens}
    asker = Opener(argparse.Namespace(**given)).open(task)
    done = answer_plan(plan, asker, Path(args.answers_file))
    return INCOMPLETE if done.failures else DONE
