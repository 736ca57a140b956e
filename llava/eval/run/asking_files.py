"""Asking the questions of a file, as the answering programs of the reference do; loads torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from llava.arguments import ProgramParser
from llava.eval.run.answering import answer_plan
from llava.eval.run.doors import get_chunk
from llava.eval.run.flags import DONE, INCOMPLETE, add_answer_flags, add_model_flags
from llava.eval.run.opening import Opener
from llava.eval.run.plan import make_plan
from llava.eval.tasks import prompts
from llava.eval.tasks.base import Ask, Option, Record, Report, TaskData
from llava.eval.tasks.choice.mmbench import MMBench
from llava.eval.tasks.choice.qbench import QBench
from llava.eval.tasks.choice.science_qa import ScienceQA
from llava.eval.tasks.questions import QuestionTask, image_folder, question_file
from llava.lines import LineFile
from llava.utils import UserError

CHUNK = (Option("num-chunks", "parts", "1"), Option("chunk-idx", "the part that is asked", "0"))


def _of_chunk(rows: Sequence[Sequence[Ask]], data: TaskData) -> Iterator[Ask]:
    """Yield the questions of the rows of this run's part."""
    n, k = int(data.options.get("num-chunks", "1")), int(data.options.get("chunk-idx", "0"))
    for row in get_chunk(rows, n, k):
        yield from row


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
    options = CHUNK

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions of this run's part."""
        yield from _of_chunk([[one] for one in self.from_reference(data)], data)

    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Raise UserError: there are no other files."""
        raise UserError("the question file is the only source of these questions")

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Raise UserError: nothing is known about right answers."""
        raise UserError(
            "a file of questions holds no right answers; score with a task, see `llava.eval list`"
        )


class MMBenchRows(MMBench):
    """MMBench's table, in parts of whole rows; without a line that asks for a letter unless it is wanted."""

    options = (
        *MMBench.options,
        *CHUNK,
        Option("letter", "the line that asks for it", "none", ("none", "en", "cn")),
    )

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the rows of this run's part, each with its rotations."""
        line = {"en": prompts.LETTER, "cn": prompts.LETTER_CN}.get(data.options.get("letter", "none"))
        rows = [list(rotations) for _, rotations in groupby(super().asks(data), lambda one: one.id)]
        for one in _of_chunk(rows, data):
            yield replace(one, text=prompts.lines(one.prompt, line) if line else one.prompt)


class ScienceDialogs(ScienceQA):
    """ScienceQA's dialogs, in parts; without the line that asks for a letter unless it is wanted."""

    options = (*CHUNK, Option("letter", "the line that asks for it", "none", ("none", "en")))

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the dialogs of this run's part."""
        for one in _of_chunk([[one] for one in self.from_reference(data)], data):
            if data.options.get("letter") == "en":
                yield one
                continue
            cut = f"\n{prompts.LETTER}"
            yield replace(one, text=one.text.removesuffix(cut), recorded=one.prompt.removesuffix(cut))


FileTask = QuestionFile | MMBenchRows | ScienceDialogs | QBench


def answer_file(
    args: argparse.Namespace,
    *,
    max_new_tokens: int,
    task: FileTask | None = None,
    options: dict[str, str] | None = None,
) -> int:
    """Ask the part of a file that the flags name; returns the exit code, 1 where a question has no answer.

    task: how the file is read, lines of question_id, image and text by default; options: of the task.
    """
    task = task or QuestionFile()
    chunk = {"num-chunks": str(args.num_chunks), "chunk-idx": str(args.chunk_idx), **(options or {})}
    files = {"question-file": Path(args.question_file), "image-folder": Path(args.image_folder)}
    data = TaskData(Path(args.question_file).parent, files=files, options=chunk)
    whole = replace(data, options={**chunk, "num-chunks": "1", "chunk-idx": "0"})
    if not any(True for _ in task.asks(data)) and any(True for _ in task.asks(whole)):
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
