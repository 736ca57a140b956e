"""DocVQA and InfographicVQA: reading documents; ANLS. Test is scored on a server, val here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from llava.eval.metrics.anls import anls
from llava.eval.submissions import write_json
from llava.eval.tasks.annotated import AnnotatedTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, TaskData
from llava.eval.tasks.files import ID, TEXT, read_listed
from llava.eval.tasks.grading import Answered
from llava.eval.tasks.prompts import short_answer
from llava.eval.tasks.questions import image_folder
from llava.eval.tasks.short.people import texts

SITE = "https://rrc.cvc.uab.es/?ch=17&com=downloads"


class DocVQA(AnnotatedTask):
    """The single-page task."""

    name = "docvqa"
    title = "DocVQA"
    splits = ("val", "test")
    answers_in = "answers"
    one_file = True
    image_field: ClassVar[str] = "image"
    files: ClassVar[dict[str, str]] = {"val": "val_v1.0_withQT.json", "test": "test_v1.0.json"}
    data: ClassVar[tuple[DataFile, ...]] = (
        image_folder("spdocvqa_images", "the folder of DocVQA's pages", SITE, "on registration"),
        DataFile(
            "annotation-file",
            "{file}",
            "the file of questions (of val with answers)",
            SITE,
            "on registration",
        ),
    )

    def where(self, file: DataFile, split: str) -> str:
        """Return the usual place of a file."""
        return file.where.format(file=self.files[split])

    def rows(self, data: TaskData) -> Iterator[tuple[str | int, Record]]:
        """Yield the questions."""
        path = data.path(self, "annotation-file")
        fields = {"questionId": ID, "question": TEXT, self.image_field: TEXT}
        for row in read_listed(path, "data", fields):
            identity = row["questionId"]
            assert isinstance(identity, int | str)
            yield identity, row

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase; the folder may hold the pages with or without `documents/`."""
        name = str(row[self.image_field])
        image = self.image(data, name)
        image = image if image.exists() else self.image(data, Path(name).name)
        return Ask(identity, short_answer(str(row["question"])), (image,), group=name)

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Grade by ANLS."""
        people = texts(row["answers"], f"{self.name}, {ask.id}")
        return Graded(ask.id, text, people[0], anls(text, people), bool(text.strip()), ask.group)

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write [{questionId, answer}] for the server."""
        return write_json(
            data.submission, [{"questionId": ask.id, "answer": text} for ask, text in found.pairs]
        )


class InfoVQA(DocVQA):
    """Infographics."""

    name = "infovqa"
    title = "InfographicVQA"
    image_field = "image_local_name"
    files: ClassVar = {
        "val": "infographicsVQA_val_v1.0_withQT.json",
        "test": "infographicsVQA_test_v1.0.json",
    }
    data = (
        image_folder("infographicsvqa_images", "the folder of the infographics", SITE, "on registration"),
        DocVQA.data[1],
    )
