"""--on_nonfinite: a loss that is not a number stops the run, or its step is dropped, naming the samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from transformers import TrainerCallback

from llava.constants import IGNORE_INDEX
from llava.train.records import SAMPLE_KEY, sample_name
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

POLICIES = ("error", "skip")
# So many dropped steps in a row are no accident: the weights or the data are broken.
MAX_IN_A_ROW = 20
NAMES_SHOWN = 16
BATCH_KEY = "sample_names"  # of a batch: those of its samples


class NamedSamples(Dataset[Any]):
    """A dataset whose samples carry their index; everything else is the dataset's own."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        """Return a sample, with its index if it is a dict."""
        sample = self._dataset[index]
        return {**sample, SAMPLE_KEY: index} if isinstance(sample, dict) else sample


class NamedBatches:
    """A collator whose batches carry the names of their samples."""

    def __init__(self, collator: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self._collator = collator

    def __call__(self, instances: Sequence[Any]) -> dict[str, Any]:
        """Collate, and add the samples' names."""
        batch = self._collator(instances)
        names = [one[SAMPLE_KEY] for one in instances if isinstance(one, dict) and SAMPLE_KEY in one]
        return {**batch, BATCH_KEY: names} if names else batch


class NonFiniteGuard(TrainerCallback):
    """Watches the losses of a run; as a callback it drops the update of a step that had a bad one."""

    def __init__(self, policy: str, dataset: object = None) -> None:
        """policy: "error" or "skip". dataset: names samples in messages (`list_data_dict.name`)."""
        self.policy = policy
        self.dropped: list[int] = []  # steps
        self._dataset = dataset
        self._bad = False  # in the present step
        self._in_a_row = 0

    def check(self, loss: torch.Tensor, batch: Mapping[str, Any], names: Sequence[Any], step: int) -> None:
        """Check the loss of a micro-batch of step `step`. Raises UserError with policy "error".

        A batch without any label has no loss (nan) and no gradient; that is no fault of the numbers.
        """
        value = float(loss)
        if math.isfinite(value) or not _has_labels(batch):
            return
        text = f"the loss of step {step} is {value}, in the batch of {self._name(names)}"
        if self.policy == "error":
            raise UserError(
                f"{text}; the weights are as they were before this step. Look at these samples, lower "
                "--learning_rate, or drop such steps with --on_nonfinite skip"
            )
        logger.warning("%s; the step is dropped (--on_nonfinite skip)", text)
        self._bad = True

    def _name(self, names: Sequence[Any]) -> str:
        if not names:
            return "unnamed samples"
        shown = [sample_name(self._dataset, one) for one in names[:NAMES_SHOWN]]
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return ", ".join(shown) + more

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: torch.optim.Optimizer,
        **kwargs: object,
    ) -> None:
        """Take the gradients away if any rank had a bad loss: an optimizer leaves such parameters alone."""
        if self.policy != "skip":
            return
        bad, self._bad = _on_any_rank(self._bad, args.device), False
        if not bad:
            self._in_a_row = 0
            return
        self.dropped.append(state.global_step + 1)
        self._in_a_row += 1
        if self._in_a_row >= MAX_IN_A_ROW:
            raise UserError(
                f"{MAX_IN_A_ROW} steps in a row, up to {state.global_step + 1}, had no finite loss: the "
                "weights or the data are broken. Resume an earlier checkpoint with --resume PATH"
            )
        if args.fp16:
            return  # its loss scaler leaves such a step out by itself, and wants to see the gradients
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Say which steps were dropped."""
        if self.dropped:
            steps = ", ".join(map(str, self.dropped[:100]))
            logger.warning("%d step(s) were dropped (--on_nonfinite skip): %s", len(self.dropped), steps)


def _has_labels(batch: Mapping[str, Any]) -> bool:
    labels = batch.get("labels")
    return labels is None or bool((labels[..., 1:] != IGNORE_INDEX).any())


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)
