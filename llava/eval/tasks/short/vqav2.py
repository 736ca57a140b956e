"""VQAv2: open questions about COCO images, ten answers of people each; test on a server, val2014 here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava.eval.submissions import vqav2_rows, write_json
from llava.eval.tasks.annotated import Rows
from llava.eval.tasks.base import Ask, DataFile, Record, TaskData
from llava.eval.tasks.files import ID, TEXT, Fields, read_lines, read_listed
from llava.eval.tasks.grading import Answered
from llava.eval.tasks.prompts import short_answer
from llava.eval.tasks.questions import image_folder, question_file
from llava.eval.tasks.short.people import PeopleTask

SITE = "https://visualqa.org/download.html"
COCO = "http://images.cocodataset.org/zips/test2015.zip (val2014.zip for val2014)"


class VQAv2(PeopleTask):
    """The server takes test2015 as a whole, of which the reference asks test-dev2015."""

    name = "vqav2"
    title = "VQAv2"
    splits = ("test-dev2015", "test2015", "val2014")
    unseen = ("test-dev2015", "test2015")
    notes = ("the server of test-dev keeps submissions waiting since 2025; --split val2014 is scored here",)
    data = (
        question_file("llava_vqav2_mscoco_{split}.jsonl"),
        image_folder("{half}", "the folder of COCO's images", COCO),
        DataFile(
            "questions", "v2_OpenEnded_mscoco_{split}_questions.json", "the questions", SITE, "CC BY 4.0"
        ),
        DataFile(
            "annotation-file",
            "v2_mscoco_{split}_annotations.json",
            "the answers of people",
            SITE,
            "CC BY 4.0",
            needed=False,
        ),
        DataFile(
            "submission-questions",
            "llava_vqav2_mscoco_test2015.jsonl",
            "the file of all test2015 questions, whose ids a submission holds",
            SITE,
            "CC BY 4.0",
            needed=False,
        ),
    )

    def where(self, file: DataFile, split: str) -> str:
        """Return the usual place; test-dev is a part of test2015."""
        return file.where.format(split=split, half=split.replace("-dev", ""))

    def rows(self, data: TaskData) -> Iterator[tuple[int, Record]]:
        """Yield the questions; those of val2014 with what people answered."""
        people: dict[str, Record] = {}
        if data.split_of(self) not in self.unseen:
            fields: Fields = {"question_id": int, "answers": list}
            told = read_listed(data.path(self, "annotation-file"), "annotations", fields)
            people = {str(row["question_id"]): row for row in told}
        fields = {"question_id": int, "image_id": int, "question": TEXT}
        for row in read_listed(data.path(self, "questions"), "questions", fields):
            yield int(str(row["question_id"])), people.get(str(row["question_id"]), {}) | row

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase."""
        half = data.split_of(self).replace("-dev", "")
        image = f"COCO_{half}_{int(str(row['image_id'])):012d}.jpg"
        return Ask(identity, short_answer(str(row["question"])), (self.image(data, image),), group=image)

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the answers to all of test2015; those that were not asked are empty, as in the reference."""
        if data.submission is None or data.split_of(self) not in self.unseen:
            return []
        path = data.path(self, "submission-questions")
        fields: Fields = {"question_id": ID}
        is_ours = path.suffix == ".jsonl"
        whole = read_lines(path, fields) if is_ours else read_listed(path, "questions", fields)
        return write_json(data.submission, vqav2_rows((row["question_id"] for row in whole), found.said()))
