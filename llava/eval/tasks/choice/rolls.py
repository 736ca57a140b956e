"""Rolled choices: options as the reference reads them, and groups of which every roll must be right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from llava.eval.tasks.base import Graded, JsonValue
from llava.eval.tasks.files import PANDAS_MISSING
from llava.eval.tasks.prompts import LETTERS


def is_none(text: str) -> bool:
    """Tell whether the reference takes a cell for missing: as pandas does, and "none", "nan" in any case."""
    return text in PANDAS_MISSING or text.lower() in ("nan", "none")


def options_of(row: Mapping[str, JsonValue]) -> tuple[list[str], int]:
    """Return the options A to D before the first missing one, and how many that have a text are lost."""
    cells = [str(row.get(letter) or "") for letter in LETTERS[:4]]
    n = next((place for place, text in enumerate(cells) if is_none(text)), len(cells))
    return cells[:n], sum(bool(text) for text in cells[n:])


def whole_groups(graded: Sequence[Graded], sizes: Mapping[str, int]) -> list[Graded]:
    """Return one grade a group: 1 if each of its questions is right. Groups that lack an answer are omitted.

    sizes: how many questions each group has. A group counts as not parsed only if nothing parsed is wrong.
    """
    groups: defaultdict[str, list[Graded]] = defaultdict(list)
    for one in graded:
        groups[one.group or str(one.id)].append(one)
    found = []
    for name, members in groups.items():
        if len(members) == sizes[name]:
            wrong = any(one.parsed and not one.credit for one in members)
            credit = float(all(one.credit for one in members))
            found.append(Graded(name, "", "", credit, wrong or all(one.parsed for one in members)))
    return found
