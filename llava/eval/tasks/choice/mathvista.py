"""MathVista, the questions with choices: the others need a language model that reads the answers."""

from __future__ import annotations

from collections.abc import Iterator

from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask
from llava.eval.tasks.base import Ask, DataFile, Record, TaskData
from llava.eval.tasks.files import packed_image, parquet_files, read_parquet

SITE = "https://huggingface.co/datasets/AI4Math/MathVista"
COLUMNS = ("pid", "question", "decoded_image", "choices", "answer", "question_type", "metadata")


class MathVista(ChoiceTask):
    """Test-mini; its published numbers are over all of its questions."""

    name = "mathvista"
    title = "MathVista (choices)"
    one_file = True
    notes = ("choices alone, 540 of test-mini's 1000 questions: no number to put beside published ones",)
    data = (DataFile("question-file", "data", "the folder of testmini-*.parquet", SITE, "CC BY-SA 4.0"),)

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions with choices."""
        for row in read_parquet(
            parquet_files(data.path(self, "question-file"), "testmini-*.parquet"), COLUMNS
        ):
            if row["question_type"] == "multi_choice":
                yield str(row["pid"]), row

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter."""
        image = packed_image(row["decoded_image"], f"mathvista: the image of {identity}")
        return Ask(identity, prompts.choice(str(row["question"]), self.choices(row)), (image,))

    def choices(self, row: Record) -> list[str]:
        """Return the choices."""
        choices = row["choices"]
        assert isinstance(choices, list)
        return [str(one) for one in choices]

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the tasks apart."""
        metadata = row.get("metadata")
        return {"task": str(metadata.get("task")) if isinstance(metadata, dict) else "none"}
