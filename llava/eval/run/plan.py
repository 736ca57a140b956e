"""What a run asks: the questions of a task, which of them are this run's, and their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from llava.eval.tasks.base import Ask, JsonValue, Task, TaskData
from llava.images import image_size
from llava.utils import UserError, shortened

# So many images are looked for before a model is loaded: if none is there, the folder is wrong.
LOOKED_AT = 20
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class WatchedData(TaskData):
    """Data of a task that notes which of its files are read."""

    used: set[str] = field(default_factory=set, compare=False)

    @classmethod
    def of(cls, data: TaskData) -> WatchedData:
        """Return the same data, watched."""
        return cls(**{one.name: getattr(data, one.name) for one in fields(TaskData)})

    def path(self, task: Task, key: str) -> Path:
        """Return where a file of the task is, see TaskData."""
        path = super().path(task, key)
        self.used.add(key)
        return path


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: every count-th question."""

    index: int = 0
    count: int = 1

    @classmethod
    def read(cls, text: str) -> Shard:
        """Read `i/n`. Raises UserError."""
        left, slash, right = text.partition("/")
        if not (slash and left.isdecimal() and right.isdecimal()) or not int(left) < int(right):
            raise UserError(
                f"--shard is {shortened(text)!r}; expected i/n with i from 0 to n - 1, such as 0/4"
            )
        return cls(int(left), int(right))


@dataclass(frozen=True)
class Plan:
    """The questions of a task in this run.

    asks: all of the task. chosen: the places in it of those that are asked (--limit, --shard). sources: of
    each file that they were read from, its key, path and SHA-256.
    """

    task: Task
    data: TaskData
    asks: list[Ask]
    chosen: list[int]
    sources: Mapping[str, Mapping[str, JsonValue]]
    limit: int | None = None

    @property
    def part(self) -> str:
        """Say which questions are asked where it is not all of them; else ""."""
        if len(self.chosen) == len(self.asks):
            return ""
        return f"only {len(self.chosen):,} of {len(self.asks):,} questions were asked (--limit, --shard)"


def make_plan(task: Task, data: TaskData, *, limit: int | None = None, shard: Shard | None = None) -> Plan:
    """Read the questions of a task. Raises UserError for data that is missing or cannot be used."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; expected a number of questions of at least 1")
    watched = WatchedData.of(data)
    asks = list(task.asks(watched))
    places = ", ".join(shortened(data.place(task, key)) for key in sorted(watched.used))
    if not asks:
        raise UserError(f"{task.name}: there is no question in {places}; look whether the file is whole")
    shard = shard or Shard()
    chosen = list(range(len(asks)))[:limit][shard.index :: shard.count]
    _look_for_images([asks[place] for place in chosen[:LOOKED_AT]], task)
    return Plan(task, data, asks, chosen, hashes(task, data, watched.used), limit)


def _look_for_images(asks: Sequence[Ask], task: Task) -> None:
    """Raise UserError if none of these questions' images is there."""
    paths = [
        one for ask in asks for one in ask.images if isinstance(one, (str, Path)) and "://" not in str(one)
    ]
    if not paths or any(Path(one).exists() for one in paths):
        return
    try:
        image_size(paths[0])
    except UserError as error:
        folders = [f"--{one.key}" for one in task.data if "folder" in one.key]
        remedy = f"name the folder of the images with {' or '.join(folders)}" if folders else "see --data-dir"
        raise UserError(
            f"{task.name}: none of the first {len(paths)} images is there ({error}); {remedy}"
        ) from error


def hashes(task: Task, data: TaskData, keys: set[str]) -> dict[str, dict[str, JsonValue]]:
    """Return path and SHA-256 of files of a task; folders have no hash."""
    found: dict[str, dict[str, JsonValue]] = {}
    for key in sorted(keys):
        path = data.place(task, key)
        if path.is_file():
            found[key] = {"path": str(path), "sha256": sha256_of(path)}
        elif path.exists():
            found[key] = {"path": str(path)}
    return found


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
