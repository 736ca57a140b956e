"""ScienceQA: school questions with choices, some with an image; the reference's parser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from llava.eval.metrics.letters import FAILED, read_letter
from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Score, TaskData
from llava.eval.tasks.files import ID, TEXT, Fields, check_row, read_by_id, read_list, read_object
from llava.eval.tasks.grading import Answered, mean
from llava.eval.tasks.questions import image_folder, question_file
from llava.utils import UserError

SITE = "https://github.com/lupantech/ScienceQA"


class ScienceQA(ChoiceTask):
    """The test split. The published number is that of questions with an image."""

    name = "science_qa"
    title = "ScienceQA"
    folder = "scienceqa"
    conv_mode = "llava_v0"
    max_new_tokens = 1024
    splits = ("test", "val", "minitest", "minival")
    data: ClassVar[tuple[DataFile, ...]] = (
        question_file("llava_{split}_CQM-A.json"),
        image_folder("images/{split}", "the folder of ScienceQA's images", SITE, "CC BY-NC-SA 4.0"),
        DataFile("base-dir", ".", "the folder of problems.json and pid_splits.json", SITE, "CC BY-NC-SA 4.0"),
    )

    def where(self, file: DataFile, split: str) -> str:
        """Return the usual place; the mini splits are parts of the whole ones."""
        return file.where.format(split=split.removeprefix("mini") if file.key == "image-folder" else split)

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the problems of the split."""
        folder, split = data.path(self, "base-dir"), data.split_of(self)
        for name in ("pid_splits.json", "problems.json"):
            if not (folder / name).exists():
                raise UserError(
                    f"science_qa: {folder / name} is missing; name its folder with --base-dir. "
                    f"Get it from {SITE}"
                )
        numbers = read_object(folder / "pid_splits.json", {split: list})[split]
        problems = read_by_id(folder / "problems.json", {"choices": list, "answer": int})
        assert isinstance(numbers, list)
        for number in map(str, numbers):
            if number not in problems:
                raise UserError(f"{folder / 'problems.json'} has no problem {number!r} of the split {split}")
            yield number, problems[number]

    def from_reference(self, data: TaskData) -> Iterator[Ask]:
        """Yield the dialogs of the reference's file."""
        path = data.path(self, "question-file")
        for row in read_list(path, {"id": ID, "conversations": list}):
            dialog = row["conversations"]
            assert isinstance(dialog, list)
            first = check_row(dialog[0] if dialog else None, {"value": TEXT}, f"{path}, {row['id']!r}")
            image = row.get("image")
            yield self._ask(str(row["id"]), str(first["value"]), str(image) if image else None, data)

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter, in the form CQM-A: context, question, choices."""
        image = f"{identity}/{row['image']}" if row.get("image") else None
        fields: Fields = {"question": TEXT, "hint": TEXT}
        return self._ask(
            identity, written(check_row(row, fields, f"problems.json, {identity!r}")), image, data
        )

    def _ask(self, identity: str | int, text: str, image: str | None, data: TaskData) -> Ask:
        asked = prompts.lines(text.replace("<image>", "").strip(), prompts.LETTER)
        images = (self.image(data, image),) if image else ()
        recorded = prompts.lines("<image>", asked) if image else asked
        return Ask(identity, asked, images, recorded=recorded)

    def choices(self, row: Record) -> list[str]:
        """Return the choices."""
        assert isinstance(row["choices"], list)
        return [str(one) for one in row["choices"]]

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
        shown = [
            one
            for one, (ask, _) in zip(graded, found.pairs, strict=True)
            if self.row_of(ask, rows).get("image")
        ]
        whole = mean("accuracy, all questions", graded, "reference")
        return [mean("accuracy, questions with an image", shown, "reference"), whole] if shown else [whole]


def written(problem: Record) -> str:
    """Write a problem in the form CQM-A."""
    choices = problem["choices"]
    assert isinstance(choices, list)
    told = " ".join(f"({letter}) {one}" for letter, one in zip(prompts.LETTERS, choices, strict=False))
    hint = str(problem["hint"]).strip() or "N/A"
    text = prompts.lines(f"Context: {hint}", f"Question: {problem['question']}", f"Options: {told}")
    return text.replace("  ", " ").strip()


def said_letter(text: str) -> str | None:
    """Return the letter that the reference reads in an answer, None where it reads none."""
    letter = read_letter(text, tuple(prompts.LETTERS[:5]))
    return None if letter == FAILED else letter
