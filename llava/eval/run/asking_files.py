"""Asking the questions of a file, as the answering programs of the reference do; loads torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
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
from llava.eval.tasks.judged.vicuna80 import Vicuna80
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

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions, as they are: several may have one id and one text."""
        yield from self.from_reference(data)

    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Raise UserError: there are no other files."""
        raise UserError("the question file is the only source of these questions")

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Raise UserError: nothing is known about right answers."""
        raise UserError(
            "a file of questions holds no right answers; score with a task, see `llava.eval list`"
        )


class MMBenchRows(MMBench):
    """MMBench's table; without a line that asks for a letter unless it is wanted."""

    options = (*MMBench.options, Option("letter", "the line that asks for it", "none", ("none", "en", "cn")))

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the rows, each with its rotations."""
        line = {"en": prompts.LETTER, "cn": prompts.LETTER_CN}.get(data.options.get("letter", "none"))
        for one in super().asks(data):
            yield replace(one, text=prompts.lines(one.prompt, line) if line else one.prompt)


class ScienceDialogs(ScienceQA):
    """ScienceQA's dialogs; without the line that asks for a letter unless it is wanted."""

    options = (Option("letter", "the line that asks for it", "none", ("none", "en")),)

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the dialogs."""
        for one in self.from_reference(data):
            if data.options.get("letter") == "en":
                yield one
                continue
            cut = f"\n{prompts.LETTER}"
            yield replace(one, text=one.text.removesuffix(cut), recorded=one.prompt.removesuffix(cut))


def _part(asks: Sequence[Ask], n: int, k: int) -> list[int]:
    """Return the places of the k-th of n parts; rotations of a row (round 1, 2, ...) stay with it."""
    starts = [place for place, one in enumerate(asks) if not one.extra.get("round")]
    rows = [range(*ends) for ends in pairwise([*starts, len(asks)])]
    return [place for row in get_chunk(rows, n, k) for place in row]


FileTask = QuestionFile | MMBenchRows | ScienceDialogs | QBench | Vicuna80


def answer_file(
    args: argparse.Namespace,
    *,
    max_new_tokens: int,
    conv_mode: str | None = None,
    task: FileTask | None = None,
    options: dict[str, str] | None = None,
) -> int:
    """Ask the part of a file that the flags name; returns the exit code, 1 where a question has no answer.

    conv_mode: key of conv_templates (default: that of the flags).
    task: how the file is read, lines of question_id, image and text by default; options: of the task.
    """
    task = task or QuestionFile()
    files = {"question-file": Path(args.question_file), "image-folder": Path(args.image_folder)}
    plan = make_plan(task, TaskData(Path(args.question_file).parent, files=files, options=options or {}))
    plan = replace(plan, chosen=_part(plan.asks, args.num_chunks, args.chunk_idx))
    if not plan.chosen:
        LineFile(args.answers_file).append(())  # more parts than questions: this one is empty
        return DONE
    usual = ProgramParser(prog="usual")
    add_model_flags(usual)
    add_answer_flags(usual)
    given = vars(usual.parse_args([])) | vars(args) | {"max_new_tokens": max_new_tokens}
    given["conv_mode"] = conv_mode or args.conv_mode
    asker = Opener(argparse.Namespace(**given)).open(task)
    done = answer_plan(plan, asker, Path(args.answers_file))
    return INCOMPLETE if done.failures else DONE
