"""Benchmarks: questions are put to a model, its answers kept, scored and compared; see docs/evaluation.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.utils import lazy_names

if TYPE_CHECKING:
    from llava.eval.run.python import Evaluation, evaluate, task_data
    from llava.eval.tasks.registry import task_named, task_names

__all__ = ["Evaluation", "evaluate", "task_data", "task_named", "task_names"]

__getattr__ = lazy_names(
    __name__,
    {
        "Evaluation": "llava.eval.run.python",
        "evaluate": "llava.eval.run.python",
        "task_data": "llava.eval.run.python",
        "task_named": "llava.eval.tasks.registry",
        "task_names": "llava.eval.tasks.registry",
    },
)
