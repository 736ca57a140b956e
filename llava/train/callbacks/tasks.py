"""--eval_tasks: the questions of benchmarks are put to the model while it trains; their scores are logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from llava.eval import evaluate, task_data, task_named
from llava.eval.run.plan import make_plan
from llava.eval.run.processes import Processes
from llava.eval.tasks.base import Task, TaskData
from llava.inference.model import LoadedModel
from llava.protocols import ImageProcessor
from llava.train.plan import RunPlan
from llava.utils import UserError, check_whole

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

PLACE = "name its folder with --eval_tasks_data"


@dataclass
class EvalTaskArguments:
    """Which benchmarks are asked while training, and when."""

    eval_tasks: str | None = field(
        default=None,
        metadata={"help": "Tasks of llava.eval whose scores are logged while training, such as digits"},
    )
    eval_tasks_steps: int = field(
        default=0, metadata={"help": "Ask them every so many steps, and at the end; 0: at the end only"}
    )
    eval_tasks_data: str | None = field(
        default=None,
        metadata={"help": "Folder of the data of the task; with several tasks, of their folders"},
    )
    eval_tasks_limit: int | None = field(
        default=None, metadata={"help": "Ask the first so many questions of each task only"}
    )
    eval_tasks_batch_size: int = field(default=8, metadata={"help": "Questions at a time"})


def planned_tasks(args: EvalTaskArguments, plan: RunPlan) -> list[tuple[Task, TaskData]]:
    """Return the tasks that a run asks, and their data; before the model is loaded.

    Raises UserError for unknown tasks, missing data, and weights that are spread over the processes.
    """
    names = [one.strip() for one in (args.eval_tasks or "").split(",") if one.strip()]
    if args.eval_tasks is not None and not names:
        raise UserError(f'--eval_tasks is "{args.eval_tasks}"; expected tasks, such as digits')
    if not names:
        for one in fields(EvalTaskArguments):
            if (value := vars(args)[one.name]) != one.default:
                raise UserError(f"--{one.name} {value} is about --eval_tasks, which is missing; add it")
        return []
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise UserError(f"--eval_tasks names {twice} twice; name each task once")
    check_whole("--eval_tasks_steps", args.eval_tasks_steps, 0)
    check_whole("--eval_tasks_batch_size", args.eval_tasks_batch_size, 1)
    if args.eval_tasks_limit is not None:
        check_whole("--eval_tasks_limit", args.eval_tasks_limit, 1)
    config = plan.hf_deepspeed_config
    if plan.fsdp or (config is not None and config.get_value("zero_optimization.stage", 0) == 3):
        raise UserError(
            "--eval_tasks needs the whole weights on each process, and ZeRO-3 and FSDP spread them; evaluate "
            "the checkpoints with python -m llava.eval instead"
        )
    found = []
    for name in names:
        try:
            task = task_named(name)
        except UserError as error:
            raise UserError(f"--eval_tasks: {error}") from error
        folder = args.eval_tasks_data
        if folder is not None and len(names) > 1:
            folder = f"{folder}/{task.folder or task.name}"
        data = task_data(task, folder)
        missing = next((one for one in task.data if not data.has(task, one.key)), None)
        try:
            make_plan(task, data, limit=args.eval_tasks_limit)
        except UserError as error:
            if missing is None:
                raise UserError(f"--eval_tasks {name}: {error}") from error
            told = str(error).replace(f"name it with --{missing.key}, or its folder with --data-dir", PLACE)
            raise UserError(f"--eval_tasks {told}") from error
        found.append((task, data))
    return found


class EvalTasks(TrainerCallback):
    """Asks tasks every so many steps and at the end; the run's random numbers and weights stay as they were.

    A score is logged as eval_TASK_SCORE, the seconds as eval_TASK_seconds.
    """

    def __init__(
        self,
        trainer: Trainer,
        tasks: Sequence[tuple[Task, TaskData]],
        args: EvalTaskArguments,
        *,
        conv_mode: str,
        image_processor: ImageProcessor | None,
    ) -> None:
        self._trainer, self._tasks = trainer, list(tasks)
        self._steps, self._limit = args.eval_tasks_steps, args.eval_tasks_limit
        self._batch_size = args.eval_tasks_batch_size
        self._conv_mode, self._image_processor = conv_mode, image_processor
        self._processes: Processes | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask the tasks if it is time."""
        step = state.global_step
        if step < state.max_steps and (not self._steps or step % self._steps):
            return
        self._processes = self._processes or Processes()
        logs: dict[str, float] = {}
        with _asking(self._trainer) as model:
            loaded = LoadedModel.of(self._trainer.processing_class, model, self._image_processor)
            for task, data in self._tasks:
                logs |= self._ask(loaded, task, data)
        should_log = control.should_log
        self._trainer.log(logs)
        control.should_log = should_log  # the loss of this step is logged as without it

    def _ask(self, loaded: LoadedModel, task: Task, data: TaskData) -> dict[str, float]:
        """Return what is logged of a task; one that fails is told and costs the run nothing."""
        assert self._processes is not None
        start = time.monotonic()
        try:
            found = evaluate(
                loaded,
                task,
                data=data,
                conv_mode=self._conv_mode,
                limit=self._limit,
                batch_size=self._batch_size,
                processes=self._processes,
            )
        except UserError as error:
            logger.warning("--eval_tasks: %s could not be asked: %s", task.name, error)
            return {}
        logs = {f"eval_{task.name}_{_key(one.name)}": one.value for one in found.report.scores}
        return logs | {f"eval_{task.name}_seconds": round(time.monotonic() - start, 2)}


def _key(name: str) -> str:
    return "_".join(name.split())


@contextmanager
def _asking(trainer: Trainer) -> Iterator[Any]:
    """Give the model, without what training wraps around it, ready to answer; then it trains as before."""
    model = trainer.model
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters stay
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            yield model
    finally:
        for module, training in modes.items():
            module.training = training
