"""Loss by modality while training, and evaluation whose loss is the mean over all labelled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import Trainer

from llava._compat import prepared_inputs
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.train.callbacks.progress import Counts
from llava.train.plan import RunPlan, adapted
from llava.train.setup.packing import pack_texts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel

MODALITIES = ("text", "image")


class LossMeter:
    """Sums token losses of samples by modality; stays on the device until it is read."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None  # (modalities, 2): summed losses, labelled tokens

    def add(self, has_image: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> None:
        """Add samples: whether it has an image, its summed token losses, its labelled tokens; (samples,)."""
        values = torch.stack([sums, counts], dim=1).to(_exact(sums.device))  # (samples, 2)
        images = has_image.to(sums.device)[:, None]
        # chosen, not multiplied: a loss that is not finite must not reach the other modality's sum
        added = torch.stack([torch.where(mask, values, 0).sum(0) for mask in (~images, images)])
        self._sums = added if self._sums is None else self._sums + added

    def read(self, accelerator: Accelerator, prefix: str = "") -> dict[str, float]:
        """Return the mean losses over the samples of all ranks, and start again.

        Keys: PREFIXloss over all tokens, PREFIXloss_text and PREFIXloss_image; what has no token is left out.
        """
        device = accelerator.device
        empty = torch.zeros(len(MODALITIES), 2, device=device, dtype=_exact(device))
        sums, self._sums = (empty if self._sums is None else self._sums), None
        by_modality = accelerator.reduce(sums, reduction="sum").tolist()
        rows = {"loss": [sum(column) for column in zip(*by_modality, strict=True)]}
        rows.update({f"loss_{name}": row for name, row in zip(MODALITIES, by_modality, strict=True)})
        return {f"{prefix}{name}": total / count for name, (total, count) in rows.items() if count}


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def losses_of_rows(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return summed token losses and numbers of labelled tokens, (B,) twice, of logits (B, L, V)."""
    targets = labels[:, 1:].to(logits.device)
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORE_INDEX
    )
    return losses.view_as(targets).sum(1), (targets != IGNORE_INDEX).sum(1).float()


class LossByModality(Trainer):
    """A Trainer that logs loss_text and loss_image beside loss, and eval_loss in the same way.

    They are means over the labelled tokens of all samples since the last entry, on all ranks and over all
    micro-batches, so they do not depend on the batch size. `loss` stays the mean over micro-batches.
    """

    def __init__(self, *args: object, plan: RunPlan | None = None, **kwargs: object) -> None:
        """plan: of the run; by default what the training arguments say, which may be of any class."""
        super().__init__(*args, **kwargs)
        self.plan = adapted(RunPlan, self.args) if plan is None else plan
        self._training_losses = LossMeter()
        self._eval_losses = LossMeter()
        self._learned: torch.Tensor | None = None
        self.counts = Counts()

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of a micro-batch, as Trainer does, and note what each sample adds to it."""
        labels = inputs.get("labels")
        has_image = _with_images(inputs)
        given = inputs
        if self.plan.packing and model.training and not self._is_multimodal:
            inputs = pack_texts(inputs)
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        # learned tokens of each sample, (samples,); image tokens may have pushed some out
        self._learned = getattr(outputs, "loss_counts", None)
        if model.training and has_image is not None and labels is not None:
            self.counts.add(given, getattr(outputs, "tokens_read", None))
            sums: torch.Tensor | None = getattr(outputs, "loss_sums", None)
            if sums is None:  # an LLM without image input: every sample is text
                count = (labels[:, 1:] != IGNORE_INDEX).sum().float()[None]
                total = torch.where(count > 0, loss.detach().float() * count, 0)
                self._training_losses.add(has_image[:1], total, count)
            else:
                self._training_losses.add(has_image, sums, outputs.loss_counts)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the losses by modality beside the training loss."""
        if "loss" in logs:
            found = self._training_losses.read(self.accelerator)
            logs = {**logs, **{name: value for name, value in found.items() if name != "loss"}}
            self.counts.gather(self.accelerator)
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Evaluate a batch, and note the losses of its samples when only losses are wanted."""
        has_image = _with_images(inputs)
        if not prediction_loss_only or inputs.get("labels") is None or has_image is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = prepared_inputs(self, inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums, counts = self._sample_losses(model, inputs)
        rows = torch.stack([has_image.to(sums), sums, counts], dim=1)  # (samples, 3)
        # drops the samples that fill up the last batch of other ranks
        kept = self.accelerator.gather_for_metrics(rows)
        if self.accelerator.is_main_process:
            self._eval_losses.add(kept[:, 0] > 0, kept[:, 1], kept[:, 2])
        return sums.sum() / counts.sum(), None, None

    @property
    def _is_multimodal(self) -> bool:
        """Whether the model takes images; such a model packs batches itself."""
        return hasattr(self.model, "supervised_logits_only")

    def _sample_losses(
        self, model: PreTrainedModel, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._is_multimodal:
            outputs = model(**inputs, skip_logits=True)
            return outputs.loss_sums, outputs.loss_counts
        labels = inputs["labels"]
        return losses_of_rows(model(**inputs).logits, labels)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate; PREFIX_loss is a mean over all labelled tokens, PREFIX_loss_text and _image over some."""
        self._eval_losses = LossMeter()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        output.metrics.update(self._eval_losses.read(self.accelerator, prefix=f"{metric_key_prefix}_"))
        return output


def _with_images(inputs: dict[str, Any]) -> torch.Tensor | None:
    """Say which samples of a batch have an image: (B,); None without token ids."""
    ids = inputs.get("input_ids")
    return None if ids is None else (ids == IMAGE_TOKEN_INDEX).any(dim=1)
