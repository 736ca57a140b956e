"""Checkpoints on disk: written aside and renamed when complete, judged before use, limited in number.

Layout of --output_dir: checkpoint-N (complete), tmp-checkpoint-N (being written; left there by a crash).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava.atomic import exchange, is_full, move, move_into
from llava.model.checkpoints.checksums import INDEX_FILE, list_files, read_list
from llava.model.checkpoints.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILES,
    CONFIG_FILE,
    PROJECTOR_FILE,
    WEIGHT_FILES,
    WEIGHT_INDEXES,
    CheckpointError,
    first_line,
)
from llava.model.checkpoints.writing import write_failure
from llava.train.plan import Stage
from llava.utils import UserError, shortened

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
STAGING_PREFIX = "tmp-"
STATE_FILE = "trainer_state.json"
# What is needed to resume training but not to load the model.
TRAINING_FILES = (
    STATE_FILE,
    INDEX_FILE,
    "optimizer*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*",
    "run_memory*",
    "training_args.bin",
    "global_step*",
    "latest",
    "zero_to_fp32.py",
    "pytorch_model_fsdp*",
)
# Their presence makes a folder look like a model, so they come last and go first.
MARKERS = (CONFIG_FILE, ADAPTER_CONFIG_FILE)


WHOLE = (*WEIGHT_FILES, *WEIGHT_INDEXES)
WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin", *WEIGHT_INDEXES)
# What a run writes, and the files beside which a loader would take it for something else.
HIDING: dict[Stage, tuple[str, ...]] = {
    "projector": (*WHOLE, ADAPTER_CONFIG_FILE, *ADAPTER_FILES),
    "adapters": WHOLE,
    "whole": (ADAPTER_CONFIG_FILE, *ADAPTER_FILES),
}


def check_other_model(output_dir: Path, stage: Stage) -> None:
    """Refuse a folder with a model of another kind: what is written would not be what a loader finds."""
    found = [name for name in HIDING[stage] if (output_dir / name).is_file()]
    if found:
        written = {"projector": "a projector", "adapters": "adapters", "whole": "a whole model"}[stage]
        raise UserError(
            f"--output_dir {output_dir} has {found[0]} of another model, beside which {written} would not be "
            "found; choose another folder, or remove the model there"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and what it is good for.

    state: "complete" (a run can resume from it), "weights" (a model without training state) or "incomplete".
    reason: what is missing, unless it is complete.
    """

    path: Path
    step: int
    state: str
    reason: str = ""


# ---- judging ----


def find_checkpoints(output_dir: str | Path) -> list[Checkpoint]:
    """List the checkpoint-N folders of an output folder by step, each judged."""
    found = []
    for path in Path(output_dir).glob(f"{PREFIX}*"):
        if re.fullmatch(rf"{PREFIX}\d+", path.name) and path.is_dir():
            found.append(judge(path))
    return sorted(found, key=lambda one: one.step)


def judge(folder: str | Path) -> Checkpoint:
    """Find out what a checkpoint folder is good for."""
    path = Path(folder)
    number = path.name.rpartition("-")[2]
    step = int(number) if number.isdigit() else -1
    fault = _missing_file(path)
    if fault:
        return Checkpoint(path, step, "incomplete", fault)
    if not _has_weights(path):
        return Checkpoint(path, step, "incomplete", "it holds no weights")
    lacking = _missing_state(path)
    if lacking:
        return Checkpoint(path, step, "weights", f"it holds weights, but no {lacking}")
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return Checkpoint(path, step, "incomplete", f"{STATE_FILE} cannot be read ({first_line(error)})")
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return Checkpoint(path, step, "incomplete", f"{STATE_FILE} is not the state of a training")
    return Checkpoint(path, step, "complete")


def _missing_file(path: Path) -> str:
    """Compare a folder with its list of files; a folder without one has only its empty files counted."""
    index = path / INDEX_FILE
    if not index.is_file():
        empty = [one.name for one in path.iterdir() if one.is_file() and not one.stat().st_size]
        return f"{empty[0]} is empty" if empty else ""
    try:
        sizes, _ = read_list(path)
    except CheckpointError:
        return f"{INDEX_FILE} cannot be read"
    if not (path / STATE_FILE).exists():
        return ""  # thinned out (`rotate`), or on the way to it
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes of {size}"
    return ""


def _has_weights(path: Path) -> bool:
    names = (*WEIGHT_FILES, *WEIGHT_INDEXES, *ADAPTER_FILES, PROJECTOR_FILE)
    return any((path / name).is_file() for name in names) or any(
        one.is_dir() for one in path.glob("global_step*")
    )


def _missing_state(path: Path) -> str:
    """Name a part of the training state that a folder lacks; empty if it has all."""
    deepspeed = any(one.is_dir() for one in path.glob("global_step*"))
    if not (path / STATE_FILE).is_file():
        return STATE_FILE
    if not deepspeed and not any(path.glob("optimizer*")):
        return "state of the optimizer"
    if not deepspeed and not (path / "scheduler.pt").is_file():
        return "scheduler.pt"
    return "" if any(path.glob("rng_state*")) else "state of the random numbers"


def missing_shards(path: Path, shards: int) -> list[str]:
    """Say which of the `shards` of ZeRO's states a checkpoint of DeepSpeed lacks; [] for another one.

    Loading would leave such states out and train on.
    """
    folders = [one for one in path.glob("global_step*") if one.is_dir()]
    if not folders:
        return []
    latest = path / "latest"
    if not latest.is_file():
        return ["latest is missing"]
    try:
        name = latest.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        name = ""
    if not (name and (path / name).is_dir()):
        return [f"latest names {name!r}, expected {folders[0].name}"]
    split = any((path / name).glob("zero_pp_rank_*_model_states.pt"))  # ZeRO-3 splits the weights, too
    found = []
    for pattern, expected in (("*model_states.pt", shards if split else 1), ("*optim_states.pt", shards)):
        count = len(list((path / name).glob(pattern)))
        if count < expected:
            found.append(f"{name} has {count} of {expected} {pattern}")
    return found


# ---- writing ----


def staging_folder(target: str | Path) -> Path:
    """Return the folder beside `target` in which it is written first."""
    target = Path(target)
    return target.with_name(f"{STAGING_PREFIX}{target.name}")


def start_staging(staging: Path) -> None:
    """Make an empty staging folder; what a crash left there is removed."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)


def commit(staged: Path, target: Path) -> None:
    """Turn a written checkpoint into `target` in one step; it is on the disk before it gets its name.

    staged: `staging_folder(target) / target.name`. An older folder of the same name is replaced.
    """
    list_files(staged)
    exchange(staged, target, before=staged.with_name("replaced"))
    shutil.rmtree(staged.parent, ignore_errors=True)


def publish(staging: Path, target: Path) -> None:
    """Move the files of a written model into `target`, which may hold other files.

    Of an earlier model no weights stay that would be taken for those of this one, such as shards. A crash in
    between leaves a folder without config.json, or without adapter_config.json: no model.
    """
    if any((staging / name).exists() for name in WHOLE):
        stale = [file for one in WEIGHT_PATTERNS for file in target.glob(one)]
        (target / CONFIG_FILE).unlink(missing_ok=True)
        for file in stale:
            if not (staging / file.name).exists():
                file.unlink()
    move_into(staging, target, last=MARKERS)


@contextlib.contextmanager
def explained_failure(what: str, output_dir: Path, staging: Path | None = None) -> Iterator[None]:
    """Turn a failure to write into a CheckpointError of one sentence, and remove what was written.

    what: the name of what is being written. Other errors pass unchanged; the partial folder goes as well.
    """
    try:
        yield
    except Exception as error:
        reason = write_failure(error, output_dir)
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if not reason:
            raise
        remedy = "free some space" if is_full(reason) else "mend that"
        raise CheckpointError(
            f"{what} could not be written to --output_dir {shortened(output_dir)}: {reason}. What was "
            f"written of it is removed, {_kept(output_dir)}; {remedy}, then give the same command again"
        ) from error


def _kept(output_dir: Path) -> str:
    try:
        complete = [one for one in find_checkpoints(output_dir) if one.state == "complete"]
    except OSError:  # the folder cannot be read either
        complete = []
    return f"{complete[-1].path.name} is kept" if complete else "there is no earlier checkpoint"


# ---- removing ----


def rotate(output_dir: Path, limit: int | None, *, best: str | None = None, thin: bool = False) -> None:
    """Keep the newest `limit` complete checkpoints (and the best one); None or 0 keeps all.

    thin: take only the training state out of the others, and leave their weights and config (stage 1, whose
    checkpoints are small and which the reference keeps all).
    """
    if not limit or limit < 0:
        return
    complete = [one for one in find_checkpoints(output_dir) if one.state == "complete"]
    for one in complete[:-limit]:
        if best is not None and one.path.resolve() == Path(best).resolve():
            continue
        if thin:
            take_out_training_state(one.path)
        else:
            remove(one.path)


def remove(folder: Path) -> None:
    """Delete a checkpoint; it loses its name first, so that a crash leaves no half of it."""
    doomed = folder.with_name(f"{STAGING_PREFIX}removed-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    move(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def take_out_training_state(folder: Path) -> None:
    """Delete what a checkpoint holds for resuming; model and config stay."""
    for pattern in TRAINING_FILES:  # trainer_state.json goes first: from then on it holds weights only
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def clear_leftovers(output_dir: Path) -> list[str]:
    """Delete what runs left that ended while they were writing or deleting; returns the names."""
    names = []
    for path in sorted(output_dir.glob(f"{STAGING_PREFIX}*")):
        if path.is_dir() and re.fullmatch(rf"{STAGING_PREFIX}((removed-)?{PREFIX}\d+|final)", path.name):
            replaced = path / "replaced"
            target = output_dir / path.name.removeprefix(STAGING_PREFIX)
            if replaced.is_dir() and not target.exists():
                move(replaced, target)  # the crash came between giving up the old and naming the new
            shutil.rmtree(path, ignore_errors=True)
            names.append(path.name)
    return names
