"""The table of tasks: name -> where its class is. A task's file is imported when it is used."""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from llava.eval.tasks.base import Task
from llava.utils import UserError

TASKS: dict[str, str] = {
    "gqa": "llava.eval.tasks.short.gqa:GQA",
    "pope": "llava.eval.tasks.yes_no.pope:POPE",
    "seed": "llava.eval.tasks.choice.seed:SEED",
    "digits": "llava.eval.tasks.digits:Digits",
}


def task_names() -> list[str]:
    """Return the names of all tasks, in the order of the table."""
    return list(TASKS)


def task_named(name: str) -> Task:
    """Return a task; raises UserError that lists the known ones."""
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no task {name!r}{meant}; the tasks are {', '.join(TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    task = getattr(importlib.import_module(module), attribute)()
    assert isinstance(task, Task)
    return task
