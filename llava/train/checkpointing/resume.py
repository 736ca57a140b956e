"""Resuming a run: which checkpoint, what has changed, and what an exact continuation needs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from llava._compat import set_last_rates, set_unlogged_loss, unlogged_loss
from llava.atomic import move, write_text
from llava.model.checkpoints.checksums import INDEX_FILE, damaged_files, read_list, unsound_files
from llava.model.checkpoints.files import CheckpointError, first_line
from llava.train.checkpointing.folders import (
    Checkpoint,
    clear_leftovers,
    explained_failure,
    find_checkpoints,
    judge,
    missing_shards,
)
from llava.train.checkpointing.manifest import (
    MANIFEST_FILE,
    changes,
    other_shards,
    other_weights,
    read_manifest,
    sharding,
    whose_weights,
    write_manifest,
)
from llava.utils import UserError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

AUTO, NEVER = "auto", "never"
RUN_STATE_FILE = "run_memory_{rank}.json"
# What loading a state of another kind, or a damaged one, raises in torch, DeepSpeed and transformers.
STATE_ERRORS = (EOFError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, AssertionError)
# Of an optimizer's groups: what flags set. A checkpoint brings the values it was written with.
FLAG_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps")


# ---- which checkpoint ----


def choose_checkpoint(training_args: TrainingArguments) -> Path | None:
    """Return the checkpoint that --resume means, None to start over; all ranks call this.

    auto: the newest complete checkpoint of the output folder, if there is one. Incomplete ones are named and
    left out. Raises CheckpointError for a PATH that cannot be resumed, and where only weights are left.
    """
    wanted = training_args.resume
    if wanted == AUTO and training_args.resume_from_checkpoint:
        wanted = training_args.resume_from_checkpoint
    if wanted == AUTO and training_args.overwrite_output_dir:
        wanted = NEVER
    output_dir = Path(training_args.output_dir)
    first = training_args.should_save
    if first and output_dir.is_dir():
        for name in clear_leftovers(output_dir):
            logger.warning("removed %s: an earlier run ended while it wrote or deleted it", output_dir / name)
    if wanted == NEVER:
        if first:
            _set_aside(output_dir)
        return None
    kind = sharding(training_args)
    shards = training_args.world_size if kind.startswith("ZeRO") and kind != "ZeRO-0" else 0
    return _newest(output_dir, shards) if wanted == AUTO else _named(Path(wanted), shards)


def _intact(one: Checkpoint, shards: int) -> Checkpoint:
    """Compare a complete checkpoint's content with its checksums; a damaged one comes back as incomplete.

    Without checksums (older versions, transformers' own) damage is told that shows in the files themselves,
    and what lacks of the `shards` that this run would load. The processes of a machine share the work, and
    all of them learn the result.
    """
    if one.state != "complete":
        return one
    rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    has_sums = (one.path / INDEX_FILE).is_file() and bool(read_list(one.path)[1])
    look = damaged_files if has_sums else unsound_files
    damage = look(one.path, part=rank % ranks, parts=ranks)
    if not has_sums:
        # a changed number of processes is refused later, in its own words
        written = shards and (read_manifest(one.path) or {}).get("world_size", shards)
        damage += missing_shards(one.path, written)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, damage)
        damage = sorted({text for texts in gathered for text in texts})
    return replace(one, state="incomplete", reason="; ".join(damage[:3])) if damage else one


def _newest(output_dir: Path, shards: int) -> Path | None:
    found = find_checkpoints(output_dir)
    for place in reversed(range(len(found))):
        if found[place].state == "complete":
            found[place] = _intact(found[place], shards)
            if found[place].state == "complete":
                break
    for one in found:
        if one.state == "incomplete":
            logger.warning("%s is incomplete (%s); it is not used", one.path, one.reason)
    complete = [one for one in found if one.state == "complete"]
    if complete:
        logger.info("resuming from %s", complete[-1].path)
        return complete[-1].path
    weights = [one for one in found if one.state == "weights"]
    if weights:
        raise CheckpointError(
            f"{output_dir} has {weights[-1].path.name}: {weights[-1].reason} to resume from. Choose "
            "another --output_dir, or start over with --resume never"
        )
    return None


def _named(path: Path, shards: int) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"--resume is {path}, which is no folder; expected auto, never or a checkpoint")
    found = _intact(judge(path), shards)
    if found.state == "complete":
        logger.info("resuming from %s", path)
        return path
    inside = [one.path for one in find_checkpoints(path) if one.state == "complete"]
    remedy = f"; name {inside[-1]}" if inside else ""
    raise CheckpointError(f"--resume {path} cannot be resumed: {found.reason}{remedy}")


def _set_aside(output_dir: Path) -> None:
    """Move checkpoints of an earlier run out of the way of a new one, whose steps count from 1 again."""
    found = find_checkpoints(output_dir)
    if not found:
        return
    folder = output_dir / f"before-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(exist_ok=True)
    for one in found:
        move(one.path, folder / one.path.name)
    logger.warning("starting over; the %d checkpoint(s) of before are now in %s", len(found), folder)


# ---- what has changed ----


def open_run(
    manifest: dict[str, Any], training_args: TrainingArguments, checkpoint: Path | None
) -> dict[str, Any]:
    """Report what differs from the run that wrote `checkpoint`, and write the manifest to the output folder.

    Returns the manifest, complete with where the run resumes from and the runs before it. Raises
    CheckpointError when the checkpoint holds optimizer states of other weights, or in other shards.
    """
    before = None if checkpoint is None else read_manifest(checkpoint)
    manifest = {**manifest, "resumed_from": None if checkpoint is None else str(checkpoint)}
    if before is not None and checkpoint is not None:
        others = other_weights(before, manifest)
        if others:
            raise CheckpointError(
                f"{checkpoint} is of a run that trained other weights: {'; '.join(others)}. Give its flags, "
                "choose another --output_dir, or start over with --resume never"
            )
        unfit = other_shards(before, manifest)
        if unfit:
            raise CheckpointError(
                f"{checkpoint} cannot be resumed: {unfit}. Start as it was started, choose another "
                "--output_dir, or start over with --resume never"
            )
        found = changes(before, manifest)
        for one in found:
            logger.warning("resuming with a change: %s", one)
        told = whose_weights(before, manifest, checkpoint)
        if told:
            logger.warning("%s", told)
        earlier = {name: before.get(name) for name in ("command", "started", "host", "resumed_from", "git")}
        manifest["changes"] = found
        manifest["earlier_runs"] = [*before.get("earlier_runs", []), earlier]
    elif checkpoint is not None:
        logger.warning("%s has no manifest; what has changed since it was written is not known", checkpoint)
    if training_args.should_save:
        folder = Path(training_args.output_dir)
        with explained_failure(MANIFEST_FILE, folder):
            write_manifest(manifest, folder)
    return manifest


def flag_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return what the flags have set in each group of an optimizer, before a checkpoint is loaded into it."""
    return [
        {name: group[name] for name in FLAG_SETTINGS if name in group} for group in optimizer.param_groups
    ]


def put_back(settings: Sequence[Mapping[str, Any]], optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Let flags that have changed since the checkpoint count; nothing happens to a run without changes."""
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    rates: list[Any] = [own.get("initial_lr") for own in settings]  # floats
    if not hasattr(scheduler, "lr_lambdas") or None in rates:
        return
    scheduler.base_lrs = rates
    # also for other numbers of steps, which change the place in the schedule
    now = [rate * part(scheduler.last_epoch) for rate, part in zip(rates, scheduler.lr_lambdas, strict=True)]
    set_last_rates(scheduler, now)
    for group, rate in zip(optimizer.param_groups, now, strict=True):
        group["lr"] = rate


@contextlib.contextmanager
def explained_state(checkpoint: str | Path, what: str) -> Iterator[None]:
    """Turn a failure to load a part of a checkpoint into a CheckpointError of one sentence."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (*STATE_ERRORS, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"--resume {checkpoint} cannot be resumed: {what} cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}). Name another checkpoint, or start over with "
            "--resume never"
        ) from error


# ---- what a checkpoint has to keep beside transformers' own state ----


class RunState(TrainerCallback):
    """Keeps what an exact continuation needs and transformers' checkpoints lack.

    The random numbers at the start of the epoch, from which the order of its samples follows, and the sum of
    the losses that are not logged yet.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._epoch = -1
        self._epoch_rng: str | None = None
        self._loaded: dict[str, Any] | None = None

    # -- saving --

    def save(self, folder: Path) -> None:
        """Write this rank's state into a checkpoint."""
        trainer = self._trainer
        content: dict[str, Any] = {
            "epoch": self._epoch,
            "epoch_rng": self._epoch_rng,
            "rng": _torch_rng(),
            "dropped_steps": trainer.guard.dropped,
        }
        loss, step = unlogged_loss(trainer)
        content["loss_since_log"], content["step_of_last_log"] = loss.hex(), step
        write_text(self._file(folder), json.dumps(content))

    def load(self, folder: Path) -> None:
        """Read this rank's state; it is put in place when training begins."""
        file = self._file(folder)
        if not file.is_file():
            logger.warning("%s has no %s: the order of samples may differ from before", folder, file.name)
            return
        try:
            self._loaded = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read ({error})") from error

    def _file(self, folder: Path) -> Path:
        return folder / RUN_STATE_FILE.format(rank=self._trainer.args.process_index)

    # -- events of the trainer --

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Take up the losses that were not logged yet."""
        if self._loaded is None:
            return
        trainer = self._trainer
        trainer.guard.dropped[:] = self._loaded["dropped_steps"]
        unfinished = state.global_step < state.max_steps
        if unfinished and "loss_since_log" in self._loaded:
            loss = float.fromhex(self._loaded["loss_since_log"])
            set_unlogged_loss(trainer, loss, self._loaded["step_of_last_log"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Note the random numbers that the epoch starts from; in a resumed epoch, put them back first."""
        epoch = int(state.epoch or 0)
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            # after the last step of an epoch the next one starts from where the random numbers are
            rng = loaded["epoch_rng"] if loaded["epoch"] == epoch else loaded["rng"]
            if rng is not None:
                torch.set_rng_state(torch.frombuffer(bytearray.fromhex(rng), dtype=torch.uint8))
        self._epoch, self._epoch_rng = epoch, _torch_rng()


def _torch_rng() -> str:
    return torch.get_rng_state().numpy().tobytes().hex()
