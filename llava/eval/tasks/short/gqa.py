"""GQA: questions about relations in scenes, answered with a word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llava.eval.submissions import gqa_answer, write_json
from llava.eval.tasks.annotated import AnnotatedTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, TaskData
from llava.eval.tasks.files import TEXT, read_by_id
from llava.eval.tasks.grading import Answered
from llava.eval.tasks.prompts import short_answer
from llava.eval.tasks.questions import image_folder, question_file

SITE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"


class GQA(AnnotatedTask):
    """Test-dev balanced. The official eval.py needs scene graphs that version 1.2 lacks."""

    name = "gqa"
    title = "GQA"
    data = (
        question_file("llava_gqa_testdev_balanced.jsonl", count=12578),
        image_folder("data/images", "the folder of GQA's images", SITE, "CC BY 4.0"),
        DataFile(
            "annotation-file",
            "data/questions1.2/testdev_balanced_questions.json",
            "the file of the balanced test-dev questions",
            SITE,
            "CC BY 4.0",
            count=12578,
        ),
    )
    notes = ("accuracy alone (the same string); consistency and the like are left to the official eval.py",)

    def rows(self, data: TaskData) -> Iterable[tuple[str, Record]]:
        """Yield the questions of version 1.2."""
        return read_by_id(data.path(self, "annotation-file"), {"question": TEXT, "imageId": TEXT}).items()

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase."""
        image = f"{row['imageId']}.jpg"
        return Ask(identity, short_answer(str(row["question"])), (self.image(data, image),), group=image)

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Compare strings, as the official eval.py does with what the reference gives it."""
        said, wanted = gqa_answer(text), str(row["answer"])
        return Graded(ask.id, said, wanted, float(said == wanted), bool(said), ask.group)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell query, verify, choose, compare and logical questions apart."""
        types = row.get("types")
        return {"structural type": str(types.get("structural")) if isinstance(types, dict) else "none"}

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the predictions that the official eval.py reads."""
        answers = [{"questionId": ask.id, "prediction": gqa_answer(text)} for ask, text in found.pairs]
        return write_json(data.submission, answers)
