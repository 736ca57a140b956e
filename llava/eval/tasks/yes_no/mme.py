"""MME: two questions of yes or no an image, fourteen categories, points for questions and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.eval.submissions import write_mme
from llava.eval.tasks.annotated import AnnotatedTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Score, TaskData
from llava.eval.tasks.files import read_text
from llava.eval.tasks.grading import Answered, Key
from llava.eval.tasks.prompts import SHORT, YES_NO, short_answer
from llava.eval.tasks.questions import image_folder, question_file
from llava.eval.tasks.yes_no.mme_points import COGNITION, PERCEPTION, points, says
from llava.utils import UserError

SITE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
RELEASE = "MME_Benchmark_release_version"


class MME(AnnotatedTask):
    """The release folder: CATEGORY/images and CATEGORY/questions_answers_YN, or both in CATEGORY."""

    name = "mme"
    title = "MME"
    folder = "MME"
    ids_repeat = True
    data = (
        question_file("llava_mme.jsonl", count=2374),
        image_folder(RELEASE, f"the folder {RELEASE}", SITE, "for research, on request"),
        DataFile("annotation-dir", RELEASE, f"the folder {RELEASE}", SITE, "for research, on request"),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions of all categories; those of an image are consecutive."""
        release = data.path(self, "annotation-dir")
        for category in sorted(one for one in release.iterdir() if one.is_dir()):
            split = (category / "questions_answers_YN").is_dir()
            texts = category / "questions_answers_YN" if split else category
            images = {one.stem: one for one in (category / "images" if split else category).glob("*")}
            for path in sorted(texts.glob("*.txt")):
                image = images.get(path.stem) if images.get(path.stem) != path else _beside(path)
                name = image.name if image else f"{path.stem}.jpg"
                place = f"{category.name}/images/{name}" if split else f"{category.name}/{name}"
                for question, answer in _questions(path):
                    row: Record = {
                        "question": question,
                        "answer": answer,
                        "image": place,
                        "category": category.name,
                    }
                    yield f"{category.name}/{name}", row

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase in place of "Please answer yes or no."."""
        image, group = self.image(data, str(row["image"])), _place(str(identity))
        extra = {"category": row["category"]}
        return Ask(identity, short_answer(_bare(str(row["question"]))), (image,), extra=extra, group=group)

    def key(self) -> Key:
        """Know a question by category, name of the image without its ending, and its own words."""
        return lambda identity, prompt: (_place(str(identity)), _bare(prompt))

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Read yes or no as the official calculation.py."""
        said, wanted = says(text), str(row["answer"]).lower()
        return Graded(ask.id, said, wanted, float(said == wanted), said != "other", ask.group)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell the categories apart."""
        return {"accuracy": str(row["category"])}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the points of perception (at most 2000) and of cognition (at most 800)."""
        kinds = [str(self.row_of(ask, rows)["category"]) for ask, _ in found.pairs]
        both = (("perception", PERCEPTION), ("cognition", COGNITION))
        return [points(name, group, graded, kinds) for name, group in both if set(group) & set(kinds)]

    def write(self, found: Answered, rows: Rows, data: TaskData) -> list[Path]:
        """Write the folder that the official calculation.py reads."""
        told = [(self.row_of(ask, rows), _place(str(ask.id)), text) for ask, text in found.pairs]
        return write_mme(data.submission, told)


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


def _place(identity: str) -> str:
    """Return `category/name` of an id that may hold a folder and an ending."""
    parts = identity.split("/")
    return f"{parts[0]}/{parts[-1].partition('.')[0]}"


def _bare(prompt: str) -> str:
    return prompt.replace(SHORT, "").strip().removesuffix(YES_NO).strip()
