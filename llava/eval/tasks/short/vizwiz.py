"""VizWiz: questions of blind people about their photographs; many cannot be answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava.eval.submissions import vizwiz_rows, write_json
from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import Rows
from llava.eval.tasks.base import Ask, DataFile, Record, TaskData
from llava.eval.tasks.files import TEXT, read_list
from llava.eval.tasks.grading import Answered
from llava.eval.tasks.questions import image_folder, question_file
from llava.eval.tasks.short.people import PeopleTask
from llava.utils import UserError

SITE = "https://vizwiz.org/tasks-and-datasets/vqa/"


class VizWiz(PeopleTask):
    """Test has no answers, and its challenge is closed; val is scored here."""

    name = "vizwiz"
    title = "VizWiz"
    splits = ("test", "val")
    unseen = ("test",)
    notes = ("the challenge of the test split is closed; --split val is scored here",)
    data = (
        question_file("llava_{split}.jsonl", count=8000),
        image_folder("{split}", "the folder of VizWiz' images", SITE, "CC BY 4.0"),
        DataFile(
            "annotation-file",
            "{split}.json",
            "the file of questions (of val with answers)",
            SITE,
            "CC BY 4.0",
        ),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions; an image has one, and its name is the id."""
        for row in read_list(data.path(self, "annotation-file"), {"image": TEXT, "question": TEXT}):
            yield str(row["image"]), row

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase, or "Unanswerable"."""
        text = prompts.lines(str(row["question"]), prompts.UNANSWERABLE, prompts.SHORT)
        return Ask(identity, text, (self.image(data, str(row["image"])),), group=str(row["image"]))

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write [{image, answer}], normalised as in the reference; raises UserError if one is missing."""
        if data.submission is not None and found.missing:
            raise UserError(
                f"vizwiz: {len(found.missing)} questions have no answer (the first is {found.missing[0]!r}), "
                "and a submission holds all; run `answer` once more without --limit"
            )
        images = ((ask.id, str(self.row_of(ask, rows)["image"])) for ask in found.asks)
        return write_json(data.submission, vizwiz_rows(images, found.said()))
