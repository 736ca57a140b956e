"""POPE: is this object in the image? Random, popular and adversarial objects; F1, the mean of the three."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Report, TaskData
from llava.eval.tasks.files import TEXT, read_lines
from llava.eval.tasks.grading import answered, mean
from llava.eval.tasks.prompts import short_answer
from llava.eval.tasks.questions import QuestionTask, image_folder, question_file
from llava.eval.tasks.rules import is_yes_or_no, pope_says
from llava.eval.tasks.yes_no.counts import Counts, mean_f1
from llava.utils import UserError

CATEGORIES = ("adversarial", "popular", "random")
SITE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"


class POPE(QuestionTask):
    """Objects of COCO val2014. The official rule is the reference's."""

    name = "pope"
    title = "POPE"
    data = (
        question_file("llava_pope_test.jsonl", count=8910),
        image_folder(
            "val2014", "the folder of COCO val2014", "http://images.cocodataset.org/zips/val2014.zip"
        ),
        DataFile("annotation-dir", "coco", "the folder of coco_pope_*.json", SITE, "MIT"),
    )

    def labels(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield category and row of each label; the reference numbers them through, from 1."""
        for category in CATEGORIES:
            path = data.path(self, "annotation-dir") / f"coco_pope_{category}.json"
            if not path.exists():
                raise UserError(
                    f"pope: {path} is missing; expected one file for each of {', '.join(CATEGORIES)}"
                )
            yield from ((category, row) for row in read_lines(path, {"label": TEXT}))

    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions of the three files."""
        folder = data.place(self, "image-folder")
        for number, (category, row) in enumerate(self.labels(data), start=1):
            image, text = str(row.get("image")), short_answer(str(row.get("text")))
            yield Ask(number, text, (folder / image,), extra={"category": category}, group=image)

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Score by F1 of each category; labels belong to questions by their order, as in the reference."""
        asks = list(self.asks(data))
        truth: dict[str, str] = {}
        for category in CATEGORIES:
            own = [ask for ask in asks if ask.extra["category"] == category]
            rows = [row for name, row in self.labels(data) if name == category]
            if len(own) != len(rows):
                raise UserError(
                    f"pope: {len(own)} questions and {len(rows)} labels are {category}; expected as many"
                )
            truth |= {str(ask.id): str(row["label"]) for ask, row in zip(own, rows, strict=True)}
        found = answered(self, asks, answers)
        counts = {category: Counts() for category in CATEGORIES}
        graded = []
        for ask, text in found.pairs:
            said, label = pope_says(text), truth[str(ask.id)]
            label = "no" if label == "no" else "yes"
            counts[str(ask.extra["category"])].add(said == "yes", label == "yes", sure=is_yes_or_no(text))
            graded.append(Graded(ask.id, said, label, float(said == label), is_yes_or_no(text), ask.group))
        present = {name: one for name, one in counts.items() if one.n}
        scores = [mean_f1(list(present.values())), mean("accuracy", graded)]
        return found.report(scores, graded, tables={name: one.table() for name, one in present.items()})
