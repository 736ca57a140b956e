"""The release folder of MME: CATEGORY/images and CATEGORY/questions_answers_YN, or both in CATEGORY."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava.eval.tasks.base import Record
from llava.eval.tasks.files import read_text
from llava.eval.tasks.prompts import SHORT, YES_NO
from llava.utils import UserError


def read_release(release: Path) -> Iterator[tuple[str, Record]]:
    """Yield the questions of all categories; those of an image are consecutive."""
    for category in sorted(one for one in release.iterdir() if one.is_dir()):
        split = (category / "questions_answers_YN").is_dir()
        texts = category / "questions_answers_YN" if split else category
        images = {one.stem: one for one in (category / "images" if split else category).glob("*")}
        for path in sorted(texts.glob("*.txt")):
            image = images.get(path.stem) if images.get(path.stem) != path else _beside(path)
            name = image.name if image else f"{path.stem}.jpg"
            place = f"{category.name}/images/{name}" if split else f"{category.name}/{name}"
            for question, answer in _questions(path):
                row: Record = {"question": question, "answer": answer}
                yield f"{category.name}/{name}", row | {"image": place, "category": category.name}


def place_of(identity: str | int) -> str:
    """Return `category/name` of an id that may hold a folder and an ending."""
    parts = str(identity).split("/")
    return f"{parts[0]}/{parts[-1].partition('.')[0]}"


def bare(prompt: str) -> str:
    """Return a question without the lines that ask for a short answer."""
    return prompt.replace(SHORT, "").strip().removesuffix(YES_NO).strip()


def _questions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the questions of a file, `question TAB answer` a line."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        question, tab, answer = line.strip().rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise UserError(
                f"{path}, line {number} is {line[:80]!r}; expected a question, a tab, and Yes or No"
            )
        yield question.strip(), answer.strip()


def _beside(path: Path) -> Path | None:
    """Return the image of a text file that lies beside it."""
    return next((one for one in sorted(path.parent.glob(f"{path.stem}.*")) if one.suffix != ".txt"), None)
