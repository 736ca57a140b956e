"""RealWorldQA: questions about photographs, each with its own wish for a letter, a word or a number."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llava.eval.tasks.annotated import AnnotatedTask
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, TaskData
from llava.eval.tasks.files import packed_image, parquet_files, read_parquet
from llava.eval.tasks.rules import letter_of

SITE = "https://huggingface.co/datasets/xai-org/RealworldQA"
_OPTION = re.compile(r"^[A-Z][.)] *(.*)$", re.MULTILINE)


class RealWorldQA(AnnotatedTask):
    """The parquet files; its authors publish no rule, the strings are compared."""

    name = "realworldqa"
    title = "RealWorldQA"
    one_file = True
    notes = ("its authors publish no rule: a letter is read, words are compared in lower case",)
    data = (
        DataFile("question-file", "data", "the folder of test-*.parquet", SITE, "CC BY-ND 4.0", count=765),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[int, Record]]:
        """Yield the questions; they have no ids, their place is taken."""
        files = parquet_files(data.path(self, "question-file"), "test-*.parquet")
        yield from enumerate(read_parquet(files, ("image", "question", "answer")))

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask as the question stands."""
        return Ask(
            identity, str(row["question"]), (packed_image(row["image"], f"realworldqa: image {identity}"),)
        )

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Read a letter where the question has options, else compare."""
        wanted, options = str(row["answer"]).strip(), _OPTION.findall(str(row["question"]))
        if options and len(wanted) == 1:
            letter = letter_of(text, options)
            return Graded(ask.id, letter or "", wanted, float(letter == wanted), letter is not None)
        said = text.strip().rstrip(".").lower()
        return Graded(
            ask.id, said, wanted, float(said == wanted.rstrip(".").lower()), bool(said.strip("?! "))
        )
