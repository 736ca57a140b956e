"""MMMU: questions of college courses, with up to seven images; choices, and a few open questions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Score, TaskData
from llava.eval.tasks.files import packed_image, parquet_files, read_parquet
from llava.eval.tasks.grading import Answered, mean
from llava.eval.tasks.rules import holds, same_number
from llava.utils import UserError

SITE = "https://huggingface.co/datasets/MMMU/MMMU"
COLUMNS = ("id", "question", "options", "answer", "question_type", *(f"image_{n}" for n in range(1, 8)))
_IMAGE = re.compile(r"<image ([1-7])>")


class MMMU(ChoiceTask):
    """The parquet files, one folder a subject. `<image 1>` stays in the text; the images stand in front."""

    name = "mmmu"
    title = "MMMU"
    splits = ("validation", "dev", "test")
    one_file = True
    notes = ("an answer that names no choice is wrong; the authors' program picks one at random",)
    data = (
        DataFile("question-file", ".", "the folder SUBJECT/SPLIT-*.parquet", SITE, "Apache-2.0", count=900),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions of all subjects, images and all; "?" stands for an unpublished answer."""
        files = parquet_files(data.path(self, "question-file"), f"**/{data.split_of(self)}-*.parquet")
        for row in read_parquet(files, COLUMNS):
            try:
                options = ast.literal_eval(str(row["options"]))
            except (ValueError, SyntaxError) as error:
                raise UserError(
                    f"mmmu: the options of {row['id']!r} are no list: {row['options']!r}"
                ) from error
            told: Record = {name: value for name, value in row.items() if name != "answer" or value != "?"}
            yield str(row["id"]), told | {"options": options}

    def choices(self, row: Record) -> list[str]:
        """Return the options; none of an open question."""
        assert isinstance(row["options"], list)
        return [str(one) for one in row["options"]]

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter, or a word or phrase, with the images that the text names."""
        question, choices = str(row["question"]), self.choices(row)
        text = prompts.choice(question, choices) if choices else prompts.short_answer(question)
        numbers = dict.fromkeys(_IMAGE.findall(text))
        images = [packed_image(row[f"image_{one}"], f"mmmu: image {one} of {identity}") for one in numbers]
        return Ask(identity, text, tuple(images))

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Grade a letter, or whether the text of an open answer holds what is expected."""
        if self.choices(row):
            return super().grade(ask, row, text)
        told = str(row["answer"])
        wanted = [str(one) for one in ast.literal_eval(told)] if told.startswith("[") else [told]
        right = any(holds(text, one) or same_number(text, one) for one in wanted)
        return Graded(ask.id, text, wanted[0], float(right), bool(text.strip(" ?!.")))

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the subjects apart: `validation_Art_1` is of Art."""
        return {
            "subject": str(row["id"]).partition("_")[2].rpartition("_")[0],
            "type": str(row["question_type"]),
        }

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the accuracy of all questions, open ones among them."""
        return [mean("accuracy", graded)]
