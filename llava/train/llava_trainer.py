"""LLaVATrainer: a Trainer with modality batches, rates of parts, whole checkpoints, exact resuming."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback
from transformers.trainer_callback import ProgressCallback

from llava._compat import train_batch_size
from llava.model.checkpoints.errors import first_line
from llava.model.checkpoints.files import NON_LORA_FILE, PROJECTOR_FILE
from llava.train.callbacks.evaluation import LossByModality
from llava.train.callbacks.nonfinite import BATCH_KEY, NamedBatches, NamedSamples, NonFiniteGuard
from llava.train.callbacks.progress import Progress
from llava.train.callbacks.unsupervised import LostSampleNames, LostSamples
from llava.train.checkpointing.resume import RunState, explained_state, flag_settings, put_back
from llava.train.checkpointing.saving import (
    get_mm_adapter_state_maybe_zero_3,
    leave_out_frozen,
    load_projector,
    load_trained,
    maybe_zero_3,
    save_beside_lora,
    save_checkpoint,
    save_projector,
)
from llava.train.data.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)
from llava.train.data.streaming import StreamingDataset, stream_loader
from llava.train.plan import RATE_FLAGS, word_of
from llava.utils import UserError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

__all__ = [
    "LLaVATrainer",
    "LengthGroupedSampler",
    "get_length_grouped_indices",
    "get_mm_adapter_state_maybe_zero_3",
    "get_modality_length_grouped_indices",
    "maybe_zero_3",
    "split_to_even_chunks",
]

logger = logging.getLogger(__name__)


class LLaVATrainer(LossByModality):
    """Trains a LLaVA as a RunPlan says.

    plan: by default what `args` says, which may be TrainingArguments of another project.
    """

    manifest: dict[str, Any] | None = None  # what the run was started with; kept in each checkpoint
    staging: Path | None = None  # where checkpoints are written to at the moment
    train_dataset: Any
    data_collator: Callable[..., Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "tokenizer" in kwargs:  # its name in transformers 4, which other projects pass
            kwargs["processing_class"] = kwargs.pop("tokenizer")
        super().__init__(*args, **kwargs)
        self.guard = NonFiniteGuard(self.plan.on_nonfinite, self.train_dataset)
        self.run_state = RunState(self)
        self.lost = LostSamples(self.plan.max_lost_samples, self.train_dataset)
        self.add_callback(self.guard)
        self.add_callback(self.lost)
        self.add_callback(self.run_state)
        self.progress: Progress | None = None
        # a notebook has a display of its own, which stays
        if self.pop_callback(ProgressCallback) or self.pop_callback(PrinterCallback):
            self.progress = Progress(self.counts, in_place=not self.args.disable_tqdm)
            self.add_callback(self.progress)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; subclasses of other projects call it so."""
        return self.processing_class

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: object, **kwargs: object) -> Any:
        """Train, as Trainer.train does. Raises UserError for a combination that the model cannot train."""
        if self.trains_projector_only and self.plan.use_im_start_end:
            raise UserError(
                "--tune_mm_mlp_adapter with --mm_use_im_start_end is not supported, as in the reference; "
                "train stage 1 with --mm_use_im_start_end False"
            )
        if isinstance(resume_from_checkpoint, str):
            self.run_state.load(Path(resume_from_checkpoint))
            if self.trains_projector_only and self.is_deepspeed_enabled:
                load_projector(self.model, Path(resume_from_checkpoint))  # DeepSpeed keeps what trains only
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except KeyError as error:
            if "metric_for_best_model" not in str(error):
                raise
            raise UserError(
                f"--metric_for_best_model is {self.args.metric_for_best_model!r}, which the evaluation of "
                "this data does not give; leave it out for the loss"
            ) from error
        finally:
            if self.progress is not None:
                self.progress.close()  # so that the error of a run that fails has a line of its own

    @property
    def trains_projector_only(self) -> bool:
        """Whether this is stage 1, of which only the projector is saved."""
        return self.plan.stage == "projector"

    def get_train_dataloader(self) -> Any:
        """Build the loader of the training data; a stream shards itself over the ranks."""
        dataset, collator = self.train_dataset, self.data_collator
        limit = getattr(self.processing_class, "model_max_length", None)
        named = LostSampleNames(NamedBatches(collator), limit)
        if isinstance(dataset, StreamingDataset):
            return stream_loader(dataset, self.args, train_batch_size(self), named)
        self.train_dataset, self.data_collator = NamedSamples(dataset), named
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collator

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        by_modality, by_length = self.plan.group_by_modality_length, self.plan.groups_by_length
        if dataset is None or not (by_modality or (by_length and hasattr(dataset, "lengths"))):
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(
            self.args.train_batch_size,
            world_size=self.args.world_size * self.args.gradient_accumulation_steps,
            lengths=dataset.modality_lengths if by_modality else dataset.lengths,
            group_by_modality=by_modality,
        )

    def get_batch_samples(self, *args: object, **kwargs: object) -> Any:
        """Read the batches of the next step; none after the last, which a resumed run may have behind it."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Run a micro-batch forward and backward. Raises UserError for a loss that is not finite."""
        names = inputs.pop(BATCH_KEY, [])
        self.lost.note(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        learned = None if self._learned is None else self._learned.tolist()
        if learned is not None:
            self.lost.note_learned(names, learned)
        if learned is None or any(learned):  # a loss over no token is no fault of the numbers
            self.guard.check(loss, inputs, names, self.state.global_step + 1)
        return loss

    def init_hf_repo(self, *args: object, **kwargs: object) -> None:
        """Make the repository of --push_to_hub. Raises UserError where the hub does not."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except OSError as error:  # those of the hub's client are
            raise UserError(f"--push_to_hub True: {first_line(error)}") from error

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Create the optimizer; parts with a learning rate of their own (`own_rate`) form groups."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if not fresh:
            return optimizer
        parts: dict[str, tuple[float, set[int]]] = {}  # part: rate, ids of its parameters
        for name, param in (self.model if model is None else model).named_parameters():
            part = next((part for part in RATE_FLAGS if part in name), "")
            rate = self.plan.own_rate(name)
            if rate is not None:
                parts.setdefault(part, (rate, set()))[1].add(id(param))
        for rate, members in parts.values():
            for group in list(optimizer.param_groups):
                own = [param for param in group["params"] if id(param) in members]
                if own:
                    group["params"] = [param for param in group["params"] if id(param) not in members]
                    settings = {name: value for name, value in group.items() if name != "params"}
                    optimizer.add_param_group({**settings, "params": own, "lr": rate})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """Create the scheduler; at this point DeepSpeed's engine exists and has loaded nothing yet.

        With an optimizer from DeepSpeed's config the engine asks for the scheduler while it is built: the
        optimizer is then the argument, and the trainer's own only stands in for it.
        """
        engine = getattr(getattr(self.accelerator, "deepspeed_engine_wrapped", None), "engine", None)
        if engine is not None and self.trains_projector_only:
            leave_out_frozen(engine)
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        try:
            for rate_at in getattr(scheduler, "lr_lambdas", ()):
                rate_at(num_training_steps)
        except ArithmeticError as error:
            raise UserError(
                f"--lr_scheduler_type {word_of(self.args.lr_scheduler_type)} has no steps after a warmup "
                f"of {self.args.get_warmup_steps(num_training_steps)} of the run's {num_training_steps} "
                f"({error}); give a smaller --warmup_ratio or --warmup_steps"
            ) from error
        self._flag_settings = flag_settings(self.optimizer if optimizer is None else optimizer)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explained_state(checkpoint or "", "the state of the optimizer or of its schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            put_back(self._flag_settings, self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with explained_state(checkpoint or "", "the state of the random numbers"):
            super()._load_rng_state(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model to a folder; in stage 1 the projector only."""
        if self.trains_projector_only:
            save_projector(self, output_dir or self.args.output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: object) -> str:
        return str(self.staging) if self.staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(
        self, model: PreTrainedModel, trial: object, *args: object, **kwargs: object
    ) -> None:
        def write() -> None:
            super(LLaVATrainer, self)._save_checkpoint(model, trial, *args, **kwargs)

        save_checkpoint(self, write, Path(self._get_output_dir(trial)))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.trains_projector_only:
            return
        super()._save(output_dir, state_dict)
        if self.plan.lora_enable:
            # transformers writes the adapter only; without the projector a checkpoint could not be used
            folder = output_dir or self.args.output_dir
            save_beside_lora(self.model, folder, should_save=self.args.should_save)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: PreTrainedModel | None = None
    ) -> None:
        target = self.model if model is None else model
        if not self.trains_projector_only:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name in (PROJECTOR_FILE, NON_LORA_FILE):
            file = Path(resume_from_checkpoint) / name
            if file.exists():
                load_trained(target, file)
