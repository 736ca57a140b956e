"""ChartQA: questions about charts, written by people or made from their captions; numbers within 5 %."""

from __future__ import annotations

from collections.abc import Iterator

from llava.eval.metrics.relaxed import relaxed_match
from llava.eval.tasks.annotated import AnnotatedTask
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, TaskData
from llava.eval.tasks.files import TEXT, read_list
from llava.eval.tasks.prompts import short_answer
from llava.eval.tasks.questions import image_folder
from llava.utils import UserError

SITE = "https://huggingface.co/datasets/ahmed-masry/ChartQA"


class ChartQA(AnnotatedTask):
    """The published folder: test/test_human.json, test/test_augmented.json, test/png."""

    name = "chartqa"
    title = "ChartQA"
    splits = ("test", "val")
    answers_in = "label"
    one_file = True
    data = (
        image_folder("{split}/png", "the folder of ChartQA's charts", SITE, "GPL-3.0"),
        DataFile(
            "annotation-dir",
            "{split}",
            "the folder of SPLIT_human.json and SPLIT_augmented.json",
            SITE,
            "GPL-3.0",
        ),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions of both files; they have no ids, so part and place are taken."""
        for part in ("human", "augmented"):
            path = data.path(self, "annotation-dir") / f"{data.split_of(self)}_{part}.json"
            if not path.exists():
                raise UserError(
                    f"chartqa: {path} is missing; name its folder with --annotation-dir. Get it from {SITE}"
                )
            for number, row in enumerate(read_list(path, {"imgname": TEXT, "query": TEXT, "label": TEXT})):
                yield f"{part}-{number}", row | {"part": part}

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase."""
        image = str(row["imgname"])
        return Ask(identity, short_answer(str(row["query"])), (self.image(data, image),), group=image)

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Grade by the relaxed accuracy; a period at the end is not part of the answer."""
        said, wanted = text.strip().removesuffix("."), str(row["label"])
        return Graded(ask.id, said, wanted, float(relaxed_match(said, wanted)), bool(said), ask.group)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the two parts apart."""
        return {"part": str(row["part"])}
