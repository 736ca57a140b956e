"""AI2D: choices about diagrams of school books."""

from __future__ import annotations

from collections.abc import Iterator

from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask
from llava.eval.tasks.base import Ask, DataFile, Record, TaskData
from llava.eval.tasks.files import check_row, read_object, read_text
from llava.eval.tasks.questions import image_folder

SITE = "https://prior.allenai.org/projects/diagram-understanding"


class AI2D(ChoiceTask):
    """The published folder, and its list of test images."""

    name = "ai2d"
    title = "AI2D"
    one_file = True
    answers_in = "correctAnswer"
    data = (
        image_folder("images", "the folder of AI2D's diagrams", SITE, "CC BY-SA"),
        DataFile(
            "test-ids", "ai2d_test_ids.csv", "the list of test images, a number a line", SITE, "CC BY-SA"
        ),
        DataFile("annotation-dir", "questions", "the folder of IMAGE.png.json", SITE, "CC BY-SA"),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions of the test images; those whose labels the image lacks are passed over."""
        folder = data.path(self, "annotation-dir")
        for number in read_text(data.path(self, "test-ids")).split():
            path = folder / f"{number}.png.json"
            for question, row in check_row(
                read_object(path, {"questions": dict})["questions"], {}, str(path)
            ).items():
                fields = {"questionId": str, "answerTexts": list, "correctAnswer": int}
                told = check_row(row, fields, f"{path}, {question[:60]!r}")
                yield str(told["questionId"]), told | {"question": question, "image": f"{number}.png"}

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter."""
        text, image = prompts.choice(str(row["question"]), self.choices(row)), str(row["image"])
        return Ask(identity, text, (self.image(data, image),), group=image)

    def choices(self, row: Record) -> list[str]:
        """Return the four texts."""
        assert isinstance(row["answerTexts"], list)
        return [str(one) for one in row["answerTexts"]]

    def wanted(self, row: Record) -> str:
        """Return the letter of the right text, whose place is told."""
        return prompts.LETTERS[int(str(row["correctAnswer"]))]
