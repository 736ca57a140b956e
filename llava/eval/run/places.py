"""Where the files of a run lie; none is both read and written, which would lose data without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.arguments import refuse_overwriting
from llava.eval.comparing.pairs import graded_path
from llava.eval.run.answering import note_path, noted
from llava.eval.run.flags import answers_path, earlier_answers_path
from llava.eval.run.plan import Plan
from llava.eval.run.results import result_path
from llava.eval.tasks.base import Task, TaskData


def check_places(
    task: Task,
    data: TaskData,
    *,
    answers: str | Path | None,
    output: str | None = None,
    asks: bool = False,
    scores: bool = False,
) -> None:
    """Raise UserError where a run of a task would write over its data or its answers.

    asks: the answers are written; else they are read. scores: a result is written.
    """
    read: dict[str, Path | None] = {
        f"--{one.key}": data.place(task, one.key) for one in task.data if data.place(task, one.key).is_file()
    }
    read |= {"--rule": Path(data.options["rule"])} if "rule" in data.options else {}
    written: dict[str, Path | None] = {}
    path = None if answers is None else Path(answers)
    (written if asks else read)["--answers"] = path
    if asks and path is not None:
        written["the note beside --answers"] = note_path(path)
    if scores:
        result = result_path(path, output) if path is not None else None if output is None else Path(output)
        written["--output"] = result
        written["the grades beside --output"] = None if result is None else graded_path(result)
        written["--submission"] = data.submission
        written["--reviews"] = Path(data.options["reviews"]) if "reviews" in data.options else None
    refuse_overwriting(read, written)


def place_of_answers(plan: Plan, model_id: str, given: str | None) -> Path:
    """Return the answers file of a run: the named one, the task's, or an earlier version's of its own."""
    path = answers_path(plan.task, plan.data, model_id, given)
    earlier = earlier_answers_path(plan.task, plan.data, model_id)
    if given is not None or path == earlier or path.exists() or not earlier.exists():
        return path
    try:
        same = _hashes(noted(note_path(earlier))["data"]) == _hashes(plan.sources)
    except (LookupError, TypeError, AttributeError):
        return path
    return earlier if same else path


def _hashes(sources: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of what has one among the sources of questions."""
    return {key: one["sha256"] for key, one in sources.items() if "sha256" in one}
