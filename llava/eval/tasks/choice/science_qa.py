"""ScienceQA: school questions with choices, some with an image; the reference's parser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Score, TaskData
from llava.eval.tasks.choice.science_problems import (
    SITE,
    choices_of,
    read_dialogs,
    read_problems,
    said_letter,
    written,
)  # fmt: skip
from llava.eval.tasks.files import TEXT, check_row
from llava.eval.tasks.grading import Answered, mean
from llava.eval.tasks.questions import image_folder, question_file


class ScienceQA(ChoiceTask):
    """The test split. The published number is that of questions with an image."""

    name, title, folder = "science_qa", "ScienceQA", "scienceqa"
    conv_mode, max_new_tokens = "llava_v0", 1024
    splits = ("test", "val", "minitest", "minival")
    data: ClassVar[tuple[DataFile, ...]] = (
        question_file("llava_{split}_CQM-A.json"),
        image_folder("images/{split}", "the folder of ScienceQA's images", SITE, "CC BY-NC-SA 4.0"),
        DataFile("base-dir", ".", "the folder of problems.json and pid_splits.json", SITE, "CC BY-NC-SA 4.0"),
    )

    def where(self, file: DataFile, split: str) -> str:
        """Return the usual place; the mini splits are parts of the whole ones."""
        return file.where.format(split=split.removeprefix("mini") if file.key == "image-folder" else split)

    def rows(self, data: TaskData) -> Iterable[tuple[str, Record]]:
        """Return the problems of the split."""
        return read_problems(data.path(self, "base-dir"), data.split_of(self)).items()

    def from_reference(self, data: TaskData) -> Iterator[Ask]:
        """Yield the dialogs of the reference's file."""
        for identity, text, image in read_dialogs(data.path(self, "question-file")):
            yield self._ask(identity, text, image, data)

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter, in the form CQM-A."""
        check_row(row, {"question": TEXT, "hint": TEXT}, f"problems.json, {identity!r}")
        return self._ask(
            identity, written(row), f"{identity}/{row['image']}" if row.get("image") else None, data
        )

    def _ask(self, identity: str | int, text: str, image: str | None, data: TaskData) -> Ask:
        asked = prompts.lines(text.replace("<image>", "").strip(), prompts.LETTER)
        images = (self.image(data, image),) if image else ()
        return Ask(identity, asked, images, recorded=prompts.lines("<image>", asked) if image else asked)

    def choices(self, row: Record) -> list[str]:
        """Return the choices."""
        return choices_of(row)

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Read the answer as the reference: a letter, "A. ...", or one "The answer is A."."""
        letter, wanted = said_letter(text), prompts.LETTERS[int(str(row["answer"]))]
        parsed = letter in prompts.LETTERS[: len(self.choices(row))] if letter else False
        return Graded(ask.id, letter or "", wanted, float(parsed and letter == wanted), parsed)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the subjects apart, and questions with an image from others."""
        return {"subject": str(row.get("subject")), "image": "yes" if row.get("image") else "no"}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the accuracy of questions with an image, which is the published one, and of all."""
        both = zip(graded, found.pairs, strict=True)
        shown = [one for one, (ask, _) in both if self.row_of(ask, rows).get("image")]
        whole = mean("accuracy, all questions", graded, "reference")
        return [mean("accuracy, questions with an image", shown, "reference"), whole] if shown else [whole]
