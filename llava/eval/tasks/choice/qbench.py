"""Q-Bench: choices about the quality of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from llava.eval.submissions import write_lines
from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Record, Said, TaskData
from llava.eval.tasks.files import TEXT, Fields, read_list
from llava.eval.tasks.grading import Answered, Key, by_prompt, read_record
from llava.eval.tasks.questions import image_folder

SITE = "https://huggingface.co/datasets/teowu/LLVisionQA-QBench"


class QBench(ChoiceTask):
    """LLVisionQA. The record is the question's own with `response`, as the program for it writes."""

    name, title = "qbench", "Q-Bench"
    max_new_tokens = 1024
    splits = ("dev", "test")
    answers_in = "correct_ans"
    ids_repeat = True
    one_file = True
    notes = ("the letter or the option that an answer names; the authors let a language model read answers",)
    data: ClassVar[tuple[DataFile, ...]] = (
        image_folder("images_llvisionqa", "the folder of LLVisionQA's images", SITE),
        DataFile("question-file", "llvisionqa_{split}.json", "the file of questions", SITE),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions; an image has one, and its name is the id."""
        fields: Fields = {"img_path": TEXT, "question": TEXT, "candidates": list}
        for row in read_list(data.path(self, "question-file"), fields):
            yield str(row["img_path"]), row

    def instruction(self, data: TaskData) -> str:
        """Return what stands between question and options."""
        return "\nChoose between one of the options as follows:\n"

    def choices(self, row: Record) -> list[str]:
        """Return the candidates."""
        candidates = row["candidates"]
        assert isinstance(candidates, list)
        return [str(one) for one in candidates]

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask with a line for each option, and a line break at the end."""
        options = "".join(f"{one}\n" for one in prompts.options(self.choices(row)[:4]))
        question, images = str(row["question"]), (self.image(data, str(row["img_path"])),)
        text = f"{question}{self.instruction(data)}{options}"
        return Ask(identity, text, images, recorded=question, extra={"row": row}, group=str(identity))

    def record(self, ask: Ask, said: Said) -> Record:
        """Return the question's own record and `response`."""
        row = ask.extra["row"]
        assert isinstance(row, dict)
        return row | {"response": said.text}

    def read(self, record: Record, number: int) -> tuple[str | int, str, str]:
        """Know a record by its image and its question."""
        identity, _, text = read_record(self, record, number, named="img_path", answer="response")
        return identity, str(record.get("question")), text

    def key(self) -> Key:
        """Know a question by image and words."""
        return by_prompt

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell three types and four concerns apart; the files number both."""
        return {name: str(row[name]) for name in ("type", "concern") if name in row}

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the records with their responses, which the authors take."""
        told = (self.row_of(ask, rows) | {"response": text} for ask, text in found.pairs)
        return write_lines(data.submission, told)
