"""Writing folders whole or not at all, and saying in one sentence why a disk did not take something."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.model.checkpoints.files import (
    WEIGHT_FILES,
    WEIGHT_INDEXES,
    CheckpointError,
    first_line,
    let_others_read,
)

logger = logging.getLogger(__name__)

FREE_BYTES_OF_A_FULL_DISK = 16 * 1024 * 1024
# a folder gets new weights: these of its old files must not stay beside them
_OLD_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", *WEIGHT_INDEXES)


def refuse_input_as_target(target: str | Path, inputs: Sequence[str | Path | None]) -> None:
    """Raise CheckpointError if `target`, the folder to write, is one of the folders that are read."""
    for one in inputs:
        if one is not None and Path(one).is_dir() and Path(one).resolve() == Path(target).resolve():
            raise CheckpointError(
                f"{target} would be overwritten by what is made from it; name a new folder."
            )


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Give a scratch folder; it takes the place of `target` when the block ends without an error.

    Until then, and after a crash, `target` is as it was. Files that `target` has under other names stay, but
    for old weights beside new ones. Raises CheckpointError where the disk does not take what is written.
    """
    name, target = target, Path(target).resolve()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{name} is a file; expected a folder to write to.")
    # a folder that others are in, or that is a disk of its own, cannot be renamed
    inside = target.is_dir() and (os.path.ismount(target) or Path.cwd().is_relative_to(target))
    scratch = _aside(target, "partial", inside=inside)
    with explained_write(name), _removed_at_the_end(scratch):
        target.parent.mkdir(parents=True, exist_ok=True)
        _take_back(target)
        for left in scratch.parent.glob(f"{scratch.name.rpartition('-')[0]}-*"):
            _remove_if_dead(left)
        scratch.mkdir()
        yield scratch
        for file in scratch.rglob("*.safetensors"):
            let_others_read(file)
        sync_tree(scratch)
        if inside:
            _move_into(scratch, target)
        else:
            _exchange(scratch, target)


@contextlib.contextmanager
def explained_write(name: str | Path) -> Iterator[None]:
    """Turn a failure to write the file or folder `name` into a CheckpointError of one sentence."""
    try:
        yield
    except Exception as error:
        if reason := write_failure(error, Path(name).parent):
            raise CheckpointError(
                f"{name} could not be written: {reason}. It is as it was before."
            ) from error
        raise


@contextlib.contextmanager
def _removed_at_the_end(scratch: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _aside(target: Path, kind: str, *, inside: bool = False) -> Path:
    """Name a folder of this process beside (or in) `target`."""
    name = f".{target.name}.{kind}-{platform.node()}-{os.getpid()}"
    return (target if inside else target.parent) / name


def _exchange(scratch: Path, target: Path) -> None:
    """Put `scratch` in the place of `target` by renaming; between the two renames `target` is set aside."""
    before = _aside(target, "before")
    if target.exists():
        if any(target.iterdir()):
            logger.warning("%s exists; its files of the same names, and old weights, are replaced", target)
        os.replace(target, before)
    try:
        os.replace(scratch, target)
    finally:
        if before.exists():
            _keep_others(before, target)
    sync(target.parent)


def _keep_others(before: Path, target: Path) -> None:
    """Move into `target` what only `before` has, and remove `before`; without `target`, put it back."""
    if not target.exists():
        os.replace(before, target)
        return
    new_weights = any((target / name).exists() for name in WEIGHT_FILES + WEIGHT_INDEXES)
    old = {file for pattern in _OLD_WEIGHTS for file in before.glob(pattern)} if new_weights else set()
    for file in before.iterdir():
        if file not in old and not (target / file.name).exists():
            os.replace(file, target / file.name)
    shutil.rmtree(before)


def _take_back(target: Path) -> None:
    """Finish or undo an exchange that a crash cut off."""
    for before in sorted(target.parent.glob(f".{target.name}.before-*")):
        _keep_others(before, target)


def _move_into(scratch: Path, target: Path) -> None:
    """Move files into a folder that cannot be renamed; without config.json it does not look whole."""
    (target / "config.json").unlink(missing_ok=True)
    for pattern in _OLD_WEIGHTS:
        for file in target.glob(pattern):
            file.unlink()
    for file in sorted(scratch.iterdir(), key=lambda one: one.name == "config.json"):
        os.replace(file, target / file.name)
    sync(target)


def _remove_if_dead(left: Path) -> None:
    """Remove what a process of this machine that is no more began to write."""
    number = left.name.rpartition("-")[2]
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        shutil.rmtree(left, ignore_errors=True)
    except (OSError, ValueError):
        return  # it lives, or belongs to another user


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot sync folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_failure(error: BaseException, folder: Path) -> str:
    """Say why a file could not be written; empty if `error` is about something else."""
    text = first_line(error)
    full = "the disk is full"
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return full if error.errno == errno.ENOSPC else "the disk quota is used up"
        return error.strerror or text
    if "No space left" in text or "os error 28" in text:
        return full
    # torch and safetensors have errors of their own for a file that does not take what is written
    of_writer = any(mark in str(error) for mark in ("PytorchStreamWriter", "inline_container", "I/O error"))
    if type(error).__name__ == "SafetensorError" or (isinstance(error, RuntimeError) and of_writer):
        return full if _is_full(folder) else f"the disk did not take it ({text})"
    return ""


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FREE_BYTES_OF_A_FULL_DISK
    except OSError:
        return False
