"""What a benchmark is made of: its files, the questions it asks, the record of an answer, and the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from PIL import Image

from llava.images import load_image_from_bytes
from llava.utils import UserError

if TYPE_CHECKING:
    from llava.inference.dialog import ImageSource

JsonValue: TypeAlias = "None | bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue]"
Record: TypeAlias = dict[str, JsonValue]  # one line of an answers file, fields in the order they are written
# approximate: the official rule but for what a note says
Kind = Literal["official", "reference", "submission", "judged", "approximate"]


@dataclass(frozen=True)
class DataFile:
    """A file or folder that a task reads, and where it comes from.

    key: its flag (`question-file` is --question-file) and its name in TaskData.files. where: the usual place
    below the task's folder; {split} in it stands for the split. needed: False for what only some runs read.
    """

    key: str
    where: str
    what: str
    url: str = ""
    licence: str = ""
    sha256: str | None = None
    count: int | None = None
    needed: bool = True


@dataclass(frozen=True)
class Option:
    """A setting of a task's own, such as its language: `--KEY` on the command line, TaskData.options there.

    default: what TaskData.options has where it is not given; None leaves it out. choices: what it may be.
    scoring: it concerns the score alone; answers are the same whatever it is. is_path: ~ is the home folder.
    compared: scores of two values of it are no scores of the same thing.
    """

    key: str
    what: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    scoring: bool = False
    is_path: bool = False
    compared: bool = True


@dataclass(frozen=True)
class TaskData:
    """Where the files of a task are in this run, and the settings of the run that its questions depend on.

    root: the task's folder (playground/data/eval/ and Task.folder). files: what the command line named, by
    DataFile.key; the others are sought below `root`. split: one of Task.splits (None: the first). options:
    further settings (`lang`, `rule`, ...), as strings. submission: the file that `report` writes for a server
    (None: none is written).
    """

    root: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    split: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    submission: Path | None = None

    def split_of(self, task: Task) -> str:
        """Return the split that is asked; raises UserError that lists those of the task."""
        if self.split is None:
            return task.splits[0] if task.splits else ""
        if self.split not in task.splits:
            known = f"its splits are {', '.join(task.splits)}" if task.splits else "it has no splits"
            raise UserError(f"{task.name} has no split {self.split!r}; {known}")
        return self.split

    def place(self, task: Task, key: str) -> Path:
        """Return where a file of the task is looked for."""
        one = next(one for one in task.data if one.key == key)
        return self.files.get(key, self.root / task.where(one, self.split_of(task)))

    def path(self, task: Task, key: str) -> Path:
        """Return where a file of the task is; raises UserError that says where to get a missing one."""
        one = next(one for one in task.data if one.key == key)
        path = self.place(task, key)
        if not path.exists():
            source = f" Get it from {one.url}" if one.url else ""
            raise UserError(
                f"{task.name}: there is no {path} ({one.what}); name it with --{key}, or its folder with "
                f"--data-dir.{source}"
            )
        return path

    def has(self, task: Task, key: str) -> bool:
        """Tell whether a file of the task is there."""
        return self.place(task, key).exists()


@dataclass(frozen=True)
class PackedImage:
    """An image that lies inside a data file, still encoded. name: for messages."""

    encoded: bytes
    name: str

    def open(self) -> Image.Image:
        """Return the image as RGB; raises ImageError for one that cannot be decoded."""
        return load_image_from_bytes(self.encoded, self.name)


@dataclass(frozen=True)
class Ask:
    """One question, ready to send; images are opened when its turn comes (`sources`).

    text: what the model is asked, without image tokens (they go in front, one an image). recorded: what the
    answer's record calls the prompt. extra: further fields that `record` and `report` need. group: questions
    of one group (the same image, the rolls of one question) are no independent evidence.
    """

    id: str | int
    text: str
    images: tuple[ImageSource | PackedImage, ...] = ()
    recorded: str | None = None
    extra: Mapping[str, JsonValue] = field(default_factory=dict)
    group: str | None = None
    system: str | None = None

    @property
    def prompt(self) -> str:
        """What the record calls the prompt."""
        return self.text if self.recorded is None else self.recorded

    def sources(self) -> list[ImageSource]:
        """Return the images for a dialog: paths and URLs as they are, packed images decoded."""
        return [one.open() if isinstance(one, PackedImage) else one for one in self.images]


@dataclass(frozen=True)
class Said:
    """An answer of a model, with what its record names: the model, and an id of the answer."""

    text: str
    model_id: str
    answer_id: str


@dataclass(frozen=True)
class Score:
    """One number. kind: the rule it was counted by; unit: "%" of n, or "points".

    low and high: the score if every answer that could not be parsed were wrong, and right. stderr: standard
    error in the same unit, over groups where questions come in groups; None where there is none.
    """

    name: str
    kind: Kind
    value: float
    n: int
    unit: str = "%"
    low: float | None = None
    high: float | None = None
    stderr: float | None = None


@dataclass(frozen=True)
class Graded:
    """One question as the scorer saw it: what was expected, what was understood, and what it earned.

    credit: between 0 and 1; None where it was not judged. parsed: False where no answer could be read.
    """

    id: str | int
    prediction: str
    expected: str
    credit: float | None
    parsed: bool = True
    group: str | None = None


@dataclass(frozen=True)
class Report:
    """What scoring gives. The first score is the one that tables show.

    tables: breakdowns, title -> row -> value. written: submission files. notes: what a reader has to know.
    asked, answered, unparsable, failed: counts of questions. missing, unexpected, repeated, empty: ids of
    questions without an answer, of answers to no question, of questions with several answers, of answers
    without a text. judge: which model judged, as its server named it; {} where none did.
    """

    scores: tuple[Score, ...]
    asked: int
    answered: int
    unparsable: int = 0
    failed: int = 0
    graded: tuple[Graded, ...] = ()
    tables: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    written: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str | int, ...] = ()
    unexpected: tuple[str | int, ...] = ()
    repeated: tuple[str | int, ...] = ()
    empty: tuple[str | int, ...] = ()
    judge: Mapping[str, JsonValue] = field(default_factory=dict)


class Task(ABC):
    """A benchmark. One instance serves any number of runs: it holds no state.

    name: on the command line. title: in tables. conv_mode: the template that the reference's program uses by
    default. max_new_tokens, temperature: of the reference's script. data: the files, with their sources.
    folder: its folder below playground/data/eval, where that is not its name. splits: the first is the usual.
    options: flags of its own. answers_of: other tasks whose answers it scores as well.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    folder: ClassVar[str] = ""
    splits: ClassVar[tuple[str, ...]] = ()
    data: ClassVar[tuple[DataFile, ...]]
    conv_mode: ClassVar[str | None] = "llava_v1"
    max_new_tokens: ClassVar[int] = 128
    temperature: ClassVar[float] = 0.0
    options: ClassVar[tuple[Option, ...]] = ()
    answers_of: ClassVar[tuple[str, ...]] = ()

    def where(self, file: DataFile, split: str) -> str:
        """Return the usual place of a file of this split, below the task's folder."""
        return file.where.format(split=split)

    def kept_in(self, data: TaskData, what: str) -> Path:
        """Return the folder where answers or reviews (what) go that no flag names a file for."""
        return data.root / what

    def check_scoring(self, data: TaskData) -> None:
        """Raise UserError for what would keep answers from being scored; called before they are made."""
        data.split_of(self)

    @abstractmethod
    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions in their order; raises UserError for files that are missing or broken."""

    def record(self, ask: Ask, said: Said) -> Record:
        """Return the line of the answers file, the reference's fields in its order (model_vqa)."""
        return {
            "question_id": ask.id,
            "prompt": ask.prompt,
            "text": said.text,
            "answer_id": said.answer_id,
            "model_id": said.model_id,
            "metadata": {},
        }

    @abstractmethod
    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Score the records of an answers file, or write the submission file; nothing is asked."""
