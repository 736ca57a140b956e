"""Evaluating from Python: `llava.eval.evaluate(model, task)`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llava.eval.run.answering import answer_plan
from llava.eval.run.answers import AnswersFile, read_answers
from llava.eval.run.flags import DATA_DIR
from llava.eval.run.local import LocalModel
from llava.eval.run.opening import weights_of
from llava.eval.run.plan import make_plan
from llava.eval.run.processes import Processes
from llava.eval.run.results import Result, of_run, score
from llava.eval.tasks.base import Record, Report, Task, TaskData
from llava.eval.tasks.registry import task_named
from llava.inference.assistant import Assistant
from llava.inference.batch import DEFAULT_BATCH_SIZE
from llava.inference.loading import open_model
from llava.inference.model import LoadedModel
from llava.inference.prompt import pick_conv_mode
from llava.inference.sampling import SamplingParams
from llava.mm_utils import get_model_name_from_path
from llava.utils import UserError

Model = Assistant | LoadedModel | str | Path


@dataclass(frozen=True)
class Evaluation:
    """A scored task: its report, the result as a file would have it, and the records of the answers."""

    report: Report
    result: Result
    records: tuple[Record, ...]

    @property
    def score(self) -> float:
        """The score that tables show. Raises UserError where there is none, with what the report notes."""
        if not self.report.scores:
            told = "; ".join(self.report.notes) or "the report notes no reason"
            raise UserError(f"{self.result['task']} has no score: {told}")
        return self.report.scores[0].value


def task_data(
    task: Task,
    data_dir: str | Path | None = None,
    *,
    files: Mapping[str, str | Path] | None = None,
    split: str | None = None,
    options: Mapping[str, str] | None = None,
) -> TaskData:
    """Return where the data of a task is: below `data_dir`, but for `files` by their keys."""
    root = DATA_DIR / (task.folder or task.name) if data_dir is None else Path(data_dir)
    given = {one.key: one.default for one in task.options if one.default is not None} | dict(options or {})
    return TaskData(root, {key: Path(one) for key, one in (files or {}).items()}, split, given)


def evaluate(
    model: Model,
    task: Task | str,
    *,
    data: TaskData | str | Path | None = None,
    answers: str | Path | None = None,
    conv_mode: str | None = None,
    limit: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    quiet: bool = True,
    processes: Processes | None = None,
    **settings: object,
) -> Evaluation:
    """Ask a model the questions of a task, and score its answers.

    model: what llava.load or load_pretrained_model returned, or a checkpoint's folder. task: its name, or a
    Task of your own. data: its folder or TaskData (default: the usual place). answers: a file that is resumed
    (default: none is written). settings: as in SamplingParams; temperature and max_new_tokens are the task's
    where they are not given. The random numbers of the caller are left as they were. Raises UserError.
    """
    task = task_named(task) if isinstance(task, str) else task
    where = data if isinstance(data, TaskData) else task_data(task, data)
    plan = make_plan(task, where, limit=limit)
    usual = SamplingParams(temperature=task.temperature, max_new_tokens=task.max_new_tokens)
    params = SamplingParams.of(usual, **settings)
    processes = processes or Processes()
    path = None if answers is None else Path(answers)
    with same_randomness():
        asker = _asker(model, params, conv_mode, batch_size)
        answered = answer_plan(plan, asker, path, processes=processes, quiet=quiet)
    found = AnswersFile(Path("answers"), answered.records, ()) if path is None else read_answers(path)
    if not answered.records:
        first = answered.failures[0] if answered.failures else None
        why = f"; {first.id}: {first.reason}" if first else ""
        raise UserError(f"{task.name}: no question has an answer{why}")
    report, said = score(task, where, found, part=plan.part)
    return Evaluation(report, said | of_run(plan, asker, answered), answered.records)


def _asker(model: Model, params: SamplingParams, conv_mode: str | None, batch_size: int) -> LocalModel:
    """Return the model with its settings; a folder is loaded."""
    weights: str | None = None
    if isinstance(model, (str, Path)):
        name, weights = get_model_name_from_path(str(model)), weights_of(str(model))
        loaded = open_model(str(model))
    else:
        loaded = model.loaded if isinstance(model, Assistant) else LoadedModel.of(model)
        name = get_model_name_from_path(str(loaded.model.name_or_path or "model"))
    chosen, why = pick_conv_mode(conv_mode, name, loaded.model.config)
    return LocalModel(
        loaded, params, model_id=name, conv_mode=chosen, why=why, batch_size=batch_size, weights=weights
    )


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the random states of Python, numpy and torch back when the block ends."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
