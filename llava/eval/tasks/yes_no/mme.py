"""MME: two questions of yes or no an image, fourteen categories, points for questions and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.eval.submissions import write_mme
from llava.eval.tasks.annotated import AnnotatedTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Score, TaskData
from llava.eval.tasks.grading import Answered, Key
from llava.eval.tasks.prompts import short_answer
from llava.eval.tasks.questions import image_folder, question_file
from llava.eval.tasks.yes_no.mme_points import COGNITION, PERCEPTION, points, says
from llava.eval.tasks.yes_no.mme_release import bare, place_of, read_release

SITE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
RELEASE = "MME_Benchmark_release_version"
FOLDER = (RELEASE, f"the folder {RELEASE}", SITE, "for research, on request")


class MME(AnnotatedTask):
    """The release folder, or the reference's file and the answers of the folder."""

    name, title, folder = "mme", "MME", "MME"
    ids_repeat = True
    data = (
        question_file("llava_mme.jsonl", count=2374),
        image_folder(*FOLDER),
        DataFile("annotation-dir", *FOLDER),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions of all categories; those of an image are consecutive."""
        return read_release(data.path(self, "annotation-dir"))

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase in place of "Please answer yes or no."."""
        image, extra = self.image(data, str(row["image"])), {"category": row["category"]}
        text = short_answer(bare(str(row["question"])))
        return Ask(identity, text, (image,), extra=extra, group=place_of(identity))

    def key(self) -> Key:
        """Know a question by category, name of the image without its ending, and its own words."""
        return lambda identity, prompt: (place_of(identity), bare(prompt))

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Read yes or no as the official calculation.py."""
        said, wanted = says(text), str(row["answer"]).lower()
        return Graded(ask.id, said, wanted, float(said == wanted), said != "other", ask.group)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the categories apart."""
        return {"accuracy": str(row["category"])}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the points of perception (at most 2000) and of cognition (at most 800)."""
        kinds = [str(self.row_of(ask, rows)["category"]) for ask, _ in found.pairs]
        both = (("perception", PERCEPTION), ("cognition", COGNITION))
        return [points(name, group, graded, kinds) for name, group in both if set(group) & set(kinds)]

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the folder that the official calculation.py reads."""
        told = [(self.row_of(ask, rows), place_of(ask.id), text) for ask, text in found.pairs]
        return write_mme(data.submission, told)
