"""MMBench and MMBench-CN: choices whose options are rolled; a question counts if every roll is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from llava.eval.submissions import write_mmbench
from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import ChoiceTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Option, Record, Said, Score, TaskData
from llava.eval.tasks.choice.rolls import is_none, options_of, whole_groups
from llava.eval.tasks.files import packed_image, read_tsv
from llava.eval.tasks.grading import Answered, Key, by_prompt, mean
from llava.eval.tasks.prompts import LETTERS
from llava.utils import UserError

SITE = "https://github.com/open-compass/MMBench"
ROLL = 1_000_000  # rolled copies of a question have its index and a multiple of this


class MMBench(ChoiceTask):
    """The tables of 2023, or later ones that hold answers for test as well: the server stopped in 2026."""

    name = "mmbench"
    title = "MMBench"
    max_new_tokens = 1024
    splits = ("dev", "test")
    one_file = True
    ids_repeat = True  # with all rounds
    letter_line: ClassVar[str] = prompts.LETTER
    options: ClassVar[tuple[Option, ...]] = (
        Option("all-rounds", "ask each row with all rotations of its options", "no", ("no", "yes")),
    )
    data: ClassVar[tuple[DataFile, ...]] = (
        DataFile(
            "question-file", "mmbench_{split}_20230712.tsv", "the table of questions", SITE, "Apache-2.0"
        ),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[int, Record]]:
        """Yield the rows of the table; of each one its rotations if all rounds are wanted."""
        path = data.path(self, "question-file")
        table = read_tsv(path, ("index", "question", "A", "image"))
        images = {one["index"]: one["image"] for one in table}
        for number, row in enumerate(table, start=1):
            if not row["index"].isdecimal():
                raise UserError(
                    f"{path}, row {number}: the index is {row['index'][:40]!r}; expected a number"
                )
            choices, hidden = options_of(row)
            image = images.get(row["image"], row["image"])  # later tables name the row that has the image
            told: Record = {name: cell for name, cell in row.items() if not is_none(cell)}
            letters = list(LETTERS[: len(choices)])
            rounds = max(len(choices), 1) if data.options.get("all-rounds") == "yes" else 1
            for turn in range(rounds):
                rolled = {
                    "options": choices[turn:] + choices[:turn],
                    "letters": letters[turn:] + letters[:turn],
                }
                yield int(row["index"]), told | rolled | {"image": image, "round": turn, "hidden": hidden}

    def choices(self, row: Record) -> list[str]:
        """Return the options as they are shown."""
        assert isinstance(row["options"], list)
        return row["options"]

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a letter; the record's prompt lacks the line that asks for it, as in the reference."""
        hint = [str(row["hint"])] if "hint" in row else []
        prompt = prompts.lines(*hint, str(row.get("question", "")), *prompts.options(self.choices(row)))
        image = packed_image(
            row["image"], f"{data.place(self, 'question-file')}: the image of row {identity}"
        )
        text, group = prompts.lines(prompt, self.letter_line), str(int(identity) % ROLL)
        return Ask(identity, text, (image,), recorded=prompt, extra=row | {"image": ""}, group=group)

    def record(self, ask: Ask, said: Said) -> Record:
        """Return the reference's fields: those of model_vqa, and round_id, options and option_char."""
        more: Record = {"options": ask.extra["options"], "option_char": ask.extra["letters"]}
        front: Record = {
            "question_id": ask.id,
            "round_id": ask.extra["round"],
            "prompt": ask.prompt,
            "text": said.text,
        }
        back: Record = {"answer_id": said.answer_id, "model_id": said.model_id, "metadata": {}}
        return front | more | back

    def key(self) -> Key:
        """Know a question by its row and its order of options."""
        return by_prompt

    def wanted(self, row: Record) -> str:
        """Return the letter that stands before the right option as it is shown."""
        letters = row["letters"]
        assert isinstance(letters, list)
        return LETTERS[letters.index(row["answer"])] if row["answer"] in letters else str(row["answer"])

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the categories apart."""
        return {f"{name}, single rows": str(row[name]) for name in ("category", "l2-category") if name in row}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the circular score (a question is a hit if all its rolls are), and that of rows."""
        sizes = Counter(str(ask.group) for ask in found.asks)
        groups = whole_groups(graded, sizes)
        single = mean("accuracy of single rows", graded)
        return [mean("circular accuracy", groups), single] if max(sizes.values()) > 1 and groups else [single]

    def remarks(self, rows: Rows) -> list[str]:
        """Count options that are lost because a text says so."""
        lost = [int(str(row["hidden"])) for row in rows.values() if row["hidden"] and not row["round"]]
        told = (
            f"{len(lost)} rows have an option that reads as missing (None, NA, nan ...), as in the reference"
        )
        return [f"{told}: {sum(lost)} options with a text are not shown"] if lost else []

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the .xlsx that the server took."""
        first = {str(ask.id): text for ask, text in found.pairs if not ask.extra["round"]}
        return write_mmbench(data.submission, data.path(self, "question-file"), first)


class MMBenchCN(MMBench):
    """The same in Chinese."""

    name = "mmbench_cn"
    title = "MMBench-CN"
    folder = "mmbench"
    letter_line = prompts.LETTER_CN
    data = (
        DataFile(
            "question-file", "mmbench_{split}_cn_20231003.tsv", "the table of questions", SITE, "Apache-2.0"
        ),
    )
