"""ScienceQA's files: problems of a split, the reference's dialogs of them, and the letter in an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava.eval.metrics.letters import FAILED, read_letter
from llava.eval.tasks import prompts
from llava.eval.tasks.base import Record
from llava.eval.tasks.files import ID, TEXT, check_row, read_by_id, read_list, read_object
from llava.utils import UserError

SITE = "https://github.com/lupantech/ScienceQA"


def read_problems(folder: Path, split: str) -> dict[str, Record]:
    """Return the problems of a split by id. Raises UserError."""
    for name in ("pid_splits.json", "problems.json"):
        if not (folder / name).exists():
            told = f"{folder / name} is missing; name its folder with --base-dir"
            raise UserError(f"science_qa: {told}. Get it from {SITE}")
    ids = read_object(folder / "pid_splits.json", {split: list})[split]
    problems = read_by_id(folder / "problems.json", {"choices": list, "answer": int})
    assert isinstance(ids, list)
    if lacking := [one for one in ids if str(one) not in problems]:
        raise UserError(f"{folder / 'problems.json'} has no problem {lacking[0]!r} of the split {split}")
    if not ids:
        raise UserError(f"the split {split} of {folder / 'pid_splits.json'} is empty; nothing can be scored")
    return {str(one): problems[str(one)] for one in ids}


def read_dialogs(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield id, question and image (None: there is none) of the reference's dialogs."""
    for row in read_list(path, {"id": ID, "conversations": list}):
        dialog = row["conversations"]
        assert isinstance(dialog, list)
        first = check_row(dialog[0] if dialog else None, {"value": TEXT}, f"{path}, {row['id']!r}")
        yield str(row["id"]), str(first["value"]), str(row["image"]) if row.get("image") else None


def choices_of(problem: Record) -> list[str]:
    """Return the choices of a problem."""
    assert isinstance(problem["choices"], list)
    return [str(one) for one in problem["choices"]]


def written(problem: Record) -> str:
    """Write a problem in the form CQM-A: context, question, choices."""
    told = " ".join(
        f"({letter}) {one}" for letter, one in zip(prompts.LETTERS, choices_of(problem), strict=False)
    )
    hint = str(problem["hint"]).strip() or "N/A"
    text = prompts.lines(f"Context: {hint}", f"Question: {problem['question']}", f"Options: {told}")
    return text.replace("  ", " ").strip()


def said_letter(text: str) -> str | None:
    """Return the letter that the reference reads in an answer, None where it reads none."""
    letter = read_letter(text, tuple(prompts.LETTERS[:5]))
    return None if letter == FAILED else letter
