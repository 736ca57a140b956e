"""Many tasks with one model, loaded once: each result at once, then one table and two charts."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llava.atomic import obstacle, write_text
from llava.eval.run.flags import DATA_DIR, DONE, INCOMPLETE
from llava.eval.run.results import Result, versions, write_result
from llava.eval.run.running import Done, Run
from llava.eval.suites.charts import draw_charts
from llava.eval.suites.published import SUITES, published_of
from llava.eval.suites.table import TaskRow, json_of, markdown_of, row_of, text_of
from llava.eval.tasks.base import Task, TaskData
from llava.eval.tasks.registry import task_named
from llava.utils import MissingPackageError, UserError, shortened

logger = logging.getLogger(__name__)


def tasks_of(suite: str | None, names: str | None) -> list[Task]:
    """Return the tasks that --suite and --tasks name. Raises UserError."""
    wanted = [one.strip() for one in names.split(",") if one.strip()] if names else []
    if names is not None and suite is not None:
        raise UserError("--suite and --tasks were both given; name the tasks by one of them")
    if names is not None and not wanted:
        raise UserError(f"--tasks names no task ({shortened(names)!r}); expected some such as gqa,pope")
    if not wanted and suite not in SUITES:
        raise UserError(
            f"--suite is {shortened(suite)!r}; expected {', '.join(SUITES)}, or tasks by --tasks a,b"
        )
    return [task_named(one) for one in dict.fromkeys(wanted) or SUITES[str(suite)]]


def run_suite(args: argparse.Namespace) -> int:
    """Ask and score the tasks whose data is there; a task that fails does not keep others from being run."""
    tasks = tasks_of(args.suite, args.tasks)
    folder = Path(args.output)
    if reason := obstacle(folder, folder=True):
        raise UserError(f"--output is {shortened(folder)}: {reason}")
    places = {task.name: _data(task, args) for task in tasks}
    ready = [task for task in tasks if not _lacks(task, places[task.name])]
    if not ready:
        lacks = "; ".join(f"{task.name} lacks {_lacks(task, places[task.name])}" for task in tasks)
        raise UserError(
            f"no task of this suite has its data ({lacks}); python -m llava.eval list TASK says more"
        )
    run = Run(args)
    rows: list[TaskRow] = []
    code, name = DONE, run.model_id
    for task in tasks:
        note, done = _lacks(task, places[task.name]), Done(DONE)
        if note:
            note = f"not run: it lacks {note}"
        else:
            try:
                done = run.answer_and_score(task, places[task.name], None, None)
                note = "" if done.code == DONE else "incomplete"
            except UserError as error:
                note, done = f"failed: {error}", Done(INCOMPLETE)
                logger.warning("%s: %s", task.name, error)
        code, name = max(code, done.code), run.model_id
        rows.append(row_of(task.name, task.title, done.report, published_of(args.published or name), note))
        if run.is_first:
            _write(folder, rows, name, args.published)
    if run.is_first:
        for line in text_of(rows, name, published_of(args.published or name)):
            print(line)
        _draw(rows, name, folder)
    return code


def _data(task: Task, args: argparse.Namespace) -> TaskData:
    """Return where a task's data is: its folder below --data-dir, else its usual one."""
    root = (Path(args.data_dir) if args.data_dir else DATA_DIR) / (task.folder or task.name)
    return TaskData(root, options={one.key: one.default for one in task.options if one.default is not None})


def _lacks(task: Task, data: TaskData) -> str:
    return ", ".join(one.key for one in task.data if one.needed and not data.has(task, one.key))


def _write(folder: Path, rows: list[TaskRow], name: str, published: str | None) -> None:
    """Write the table as it stands."""
    known = published_of(published or name)
    result: Result = {"model": name, "rows": json_of(rows), "versions": versions()}
    if known is not None:
        result["published"] = {"name": known.name, "source": known.source}
    write_result(folder / "suite.json", result)
    write_text(folder / "suite.md", markdown_of(rows, name, known))


def _draw(rows: list[TaskRow], name: str, folder: Path) -> None:
    try:
        written = draw_charts(rows, name, folder)
    except MissingPackageError as error:
        logger.warning("no charts: %s", error)
        written = []
    for path in (folder / "suite.md", folder / "suite.json", *written):
        print(path)
