"""What `list` tells: the tasks, whether their data is on this disk, and where it is to be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.eval.run.flags import DATA_DIR
from llava.eval.tasks.base import DataFile, Task, TaskData
from llava.eval.tasks.registry import task_named


def list_tasks(names: Sequence[str], data_dir: str | None, *, details: bool) -> Iterator[str]:
    """Yield a line a task, with details of its files and their sources where wanted."""
    for name in names:
        task = task_named(name)
        root = Path(data_dir) if data_dir else DATA_DIR / (task.folder or task.name)
        data = TaskData(root)
        missing = [one for one in task.data if one.needed and not data.has(task, one.key)]
        state = "ready" if not missing else f"lacks {', '.join(one.key for one in missing)}"
        yield f"{name:<16} {task.title:<24} {state}" + ("" if details or not missing else f" (in {root})")
        if details:
            yield from _details(task, data)


def _details(task: Task, data: TaskData) -> Iterator[str]:
    if task.splits:
        yield f"  --split: {', '.join(task.splits)}"
    for option in task.options:
        yield f"  --{option.key}: {option.what}"
    for one in task.data:
        yield f"  --{one.key}: {one.what}"
        yield f"      {'found' if data.has(task, one.key) else 'not there'}: {data.place(task, one.key)}"
        yield from (f"      {line}" for line in _source(one))


def _source(one: DataFile) -> Iterator[str]:
    if one.url:
        yield f"from {one.url}"
    if one.licence:
        yield f"licence: {one.licence}"
    if not one.needed:
        yield "needed by some runs only"
