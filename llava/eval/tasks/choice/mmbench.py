"""MMBench and MMBench-CN: choices whose options are rolled; a question counts if every roll is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from llava.eval.submissions import write_mmbench
from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Option, Record, Said, Score, TaskData
from llava.eval.tasks.choice.mmbench_table import ROLL, circular_scores, lost_options, read_rows, shown_letter
from llava.eval.tasks.files import packed_image
from llava.eval.tasks.grading import Answered, Key, by_prompt

SITE = "https://github.com/open-compass/MMBench"
TABLE = ("the table of questions", SITE, "Apache-2.0")
ROUNDS = Option("all-rounds", "ask each row with all rotations of its options", "no", ("no", "yes"))


class MMBench(ChoiceTask):
    """The tables of 2023, or later ones that hold answers for test as well: the server stopped in 2026."""

    name, title = "mmbench", "MMBench"
    max_new_tokens = 1024
    splits = ("dev", "test")
    one_file = True
    ids_repeat = True  # with all rounds
    letter_line: ClassVar[str] = prompts.LETTER
    options: ClassVar[tuple[Option, ...]] = (ROUNDS,)
    data: ClassVar[tuple[DataFile, ...]] = (
        DataFile("question-file", "mmbench_{split}_20230712.tsv", *TABLE),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[int, Record]]:
        """Yield the rows of the table; of each one its rotations if all rounds are wanted."""
        all_rounds = data.options.get("all-rounds") == "yes"
        return read_rows(data.path(self, "question-file"), all_rounds=all_rounds)

    def choices(self, row: Record) -> list[str]:
        """Return the options as they are shown."""
        assert isinstance(row["options"], list)
        return row["options"]

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter; the record's prompt lacks the line that asks for it, as in the reference."""
        hint = [str(row["hint"])] if "hint" in row else []
        prompt = prompts.lines(*hint, str(row.get("question", "")), *prompts.options(self.choices(row)))
        where = f"{data.place(self, 'question-file')}: the image of row {identity}"
        text, group = prompts.lines(prompt, self.letter_line), str(int(identity) % ROLL)
        image = packed_image(row["image"], where)
        return Ask(identity, text, (image,), recorded=prompt, extra=row | {"image": ""}, group=group)

    def record(self, ask: Ask, said: Said) -> Record:
        """Return the reference's fields: those of model_vqa, and round_id, options and option_char."""
        front: Record = {"question_id": ask.id, "round_id": ask.extra["round"], "prompt": ask.prompt}
        front |= {"text": said.text, "options": ask.extra["options"], "option_char": ask.extra["letters"]}
        return front | {"answer_id": said.answer_id, "model_id": said.model_id, "metadata": {}}

    def key(self) -> Key:
        """Know a question by its row and its order of options."""
        return by_prompt

    def wanted(self, row: Record) -> str:
        """Return the letter that stands before the right option as it is shown."""
        return shown_letter(row)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the categories apart."""
        return {f"{name}, single rows": str(row[name]) for name in ("category", "l2-category") if name in row}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the circular score and that of rows."""
        return circular_scores(graded, found.asks)

    def remarks(self, rows: Rows) -> list[str]:
        """Count options that are lost because a text says so."""
        return lost_options(rows)

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the .xlsx that the server took."""
        first = {str(ask.id): text for ask, text in found.pairs if not ask.extra["round"]}
        return write_mmbench(data.submission, data.path(self, "question-file"), first)


class MMBenchCN(MMBench):
    """The same in Chinese."""

    name, title, folder = "mmbench_cn", "MMBench-CN", "mmbench"
    letter_line = prompts.LETTER_CN
    data = (DataFile("question-file", "mmbench_{split}_cn_20231003.tsv", *TABLE),)
