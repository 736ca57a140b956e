"""Questions of a benchmark, from the reference's question files or from the original ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from llava.eval.tasks.base import Ask, DataFile, JsonValue, Task, TaskData
from llava.eval.tasks.files import ID, TEXT, Fields, read_lines
from llava.utils import UserError, shortened

# What the `llava_*.jsonl` files of the reference have in each line.
LLAVA_FIELDS: Fields = {"question_id": ID, "image": TEXT, "text": TEXT}
EVAL_ZIP = "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view"


def question_file(where: str, count: int | None = None) -> DataFile:
    """Describe the reference's question file of a task, which may take the place of the original ones."""
    return DataFile(
        key="question-file",
        where=where,
        what="the question file of the reference",
        url=f"{EVAL_ZIP} (eval.zip, named in the reference's documentation)",
        count=count,
        needed=False,
    )


def image_folder(where: str, what: str, url: str, licence: str = "") -> DataFile:
    """Describe the folder of a task's images."""
    return DataFile("image-folder", where, what, url, licence)


class QuestionTask(Task):
    """A benchmark of which the reference publishes a question file; without it the original files are read.

    ids_repeat: several questions have one id (that of their image), and the prompt tells them apart.
    one_file: the question file is the original one.
    """

    ids_repeat: ClassVar[bool] = False
    one_file: ClassVar[bool] = False

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions; the reference's file comes first where it is there."""
        is_there = not self.one_file and data.has(self, "question-file")
        yield from checked(self, self.from_reference(data) if is_there else self.from_originals(data))

    def from_reference(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions of the reference's file."""
        path, folder = data.path(self, "question-file"), data.place(self, "image-folder")
        for row in read_lines(path, LLAVA_FIELDS):
            number, image, text = row["question_id"], str(row["image"]), str(row["text"])
            assert isinstance(number, int | str)
            category = row.get("category", "default")
            yield Ask(number, text, (folder / image,), extra={"category": category}, group=image)

    @abstractmethod
    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Yield the same questions from the files that the benchmark's authors publish."""


def checked(task: Task, asks: Iterable[Ask]) -> Iterator[Ask]:
    """Yield questions; raises UserError for two that differ and have one id, where that is not usual."""
    if isinstance(task, QuestionTask) and task.ids_repeat:
        yield from asks
        return
    seen: dict[str, Ask] = {}
    for ask in asks:
        before = seen.setdefault(str(ask.id), ask)
        if before is not ask and (before.text, before.images) != (ask.text, ask.images):
            raise UserError(
                f"{task.name}: two questions have the id {ask.id!r}: {shortened(before.prompt, 80)!r} and "
                f"{shortened(ask.prompt, 80)!r}; expected one of each, fetch the question file once more"
            )
        yield ask


def value(row: dict[str, JsonValue], name: str) -> str:
    """Return a field of a row as text, without the spaces around it."""
    return str(row[name]).strip()
