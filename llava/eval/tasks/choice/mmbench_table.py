"""The table of MMBench: rows with their options as they are shown, rotated where all rounds are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llava.eval.tasks.base import Ask, Graded, Record, Score
from llava.eval.tasks.choice.rolls import is_none, options_of, whole_groups
from llava.eval.tasks.files import read_tsv
from llava.eval.tasks.grading import mean
from llava.eval.tasks.prompts import LETTERS
from llava.utils import UserError

ROLL = 1_000_000  # rolled copies of a question have its index and a multiple of this


def read_rows(path: Path, *, all_rounds: bool) -> Iterator[tuple[int, Record]]:
    """Yield the rows of a table; of each one its rotations if all rounds are wanted.

    A row gets `options` and `letters` as they are shown, `round` and `hidden` (options that are lost).
    """
    table = read_tsv(path, ("index", "question", "A", "image"))
    images = {one["index"]: one["image"] for one in table}
    for number, row in enumerate(table, start=1):
        if not row["index"].isdecimal():
            raise UserError(f"{path}, row {number}: the index is {row['index'][:40]!r}; expected a number")
        choices, hidden = options_of(row)
        image = images.get(row["image"], row["image"])  # later tables name the row that has the image
        told: Record = {name: cell for name, cell in row.items() if not is_none(cell)}
        told |= {"image": image, "hidden": hidden}
        letters = list(LETTERS[: len(choices)])
        for turn in range(max(len(choices), 1) if all_rounds else 1):
            options, shown = choices[turn:] + choices[:turn], letters[turn:] + letters[:turn]
            yield int(row["index"]), told | {"options": options, "letters": shown, "round": turn}


def shown_letter(row: Record) -> str:
    """Return the letter that stands before the right option as it is shown."""
    letters = row["letters"]
    assert isinstance(letters, list)
    return LETTERS[letters.index(row["answer"])] if row["answer"] in letters else str(row["answer"])


def circular_scores(graded: Sequence[Graded], asks: Sequence[Ask]) -> list[Score]:
    """Return the circular score (a question is a hit if all its rolls are), and that of rows."""
    sizes = Counter(str(ask.group) for ask in asks)
    groups = whole_groups(graded, sizes)
    single = mean("accuracy of single rows", graded)
    return [mean("circular accuracy", groups), single] if max(sizes.values()) > 1 and groups else [single]


def lost_options(rows: Mapping[str, Record]) -> list[str]:
    """Count the options that are lost because a text says so."""
    lost = [int(str(row["hidden"])) for row in rows.values() if row["hidden"] and not row["round"]]
    told = f"{len(lost)} rows have an option that reads as missing (None, NA, nan ...), as in the reference"
    return [f"{told}: {sum(lost)} options with a text are not shown"] if lost else []
