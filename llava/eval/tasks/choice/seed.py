"""SEED-Bench: choices about images and the middle frames of videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.eval.submissions import seed_id, seed_rows, write_lines
from llava.eval.tasks.annotated import ChoiceTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Score, TaskData
from llava.eval.tasks.files import ID, TEXT, check_row, check_rows, read_object
from llava.eval.tasks.grading import Answered, mean
from llava.eval.tasks.prompts import choice
from llava.eval.tasks.questions import image_folder, question_file

SITE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
FIELDS: dict[str, type | tuple[type, ...]] = {"question_type_id": int, "data_type": TEXT, "answer": TEXT}
FIELDS |= {"question_id": ID, "data_id": ID, "question": TEXT} | dict.fromkeys(CHOICES, (str, int, float))


class SEED(ChoiceTask):
    """Nine kinds of questions about images, three about videos, of which one frame is shown."""

    name = "seed"
    title = "SEED-Bench"
    folder = "seed_bench"
    data = (
        question_file("llava-seed-bench.jsonl"),
        image_folder(".", "the folder of SEED-Bench-image and SEED-Bench-video-image", SITE, "CC BY-NC 4.0"),
        DataFile(
            "annotation-file", "SEED-Bench.json", "the file of questions and answers", SITE, "CC BY-NC 4.0"
        ),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str | int, Record]]:
        """Yield the questions of SEED-Bench.json, each with the name of its kind."""
        path = data.path(self, "annotation-file")
        whole = read_object(path, {"questions": list, "question_type": dict})
        names = {
            str(number): name for name, number in check_row(whole["question_type"], {}, str(path)).items()
        }
        for row in check_rows(whole["questions"], FIELDS, path):
            kind = names.get(str(row["question_type_id"]), "none")
            yield seed_id(row["question_id"]), row | {"kind": kind}

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter; a video's frame is TYPE_ID.png, where the reference's tool puts it."""
        image = f"SEED-Bench-image/{row['data_id']}"
        if row["data_type"] == "video":
            image = f"SEED-Bench-video-image/{row['question_type_id']}_{row['question_id']}.png"
        text = choice(str(row["question"]), self.choices(row))
        return Ask(identity, text, (self.image(data, image),), extra={"category": row["kind"]}, group=image)

    def choices(self, row: Record) -> list[str]:
        """Return the four choices."""
        return [str(row[name]) for name in CHOICES]

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell kinds of questions apart, and images from videos."""
        return {"kind": str(row["kind"]), "medium": str(row["data_type"])}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Score by the reference's rule, an answer that is but the letter; and by the letter named."""
        exact = [
            Graded(one.id, text, one.expected, float(text == one.expected), one.parsed, one.group)
            for one, (_, text) in zip(graded, found.pairs, strict=True)
        ]
        return [mean("accuracy", exact, "reference"), mean("accuracy of the letter named", graded)]

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the lines for the leaderboard."""
        said = {str(ask.id): text for ask, text in found.pairs}
        whole = [row["question_id"] for row in rows.values()]
        return write_lines(data.submission, seed_rows(whole, said))
