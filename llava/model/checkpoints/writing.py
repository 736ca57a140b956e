"""Writing folders whole or not at all, and saying in one sentence why a disk did not take something."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.atomic import DISK_FULL, atomic_folder, obstacle, try_to_write, words_of
from llava.model.checkpoints.files import ADAPTER_CONFIG_FILE, WEIGHT_INDEXES, CheckpointError, first_line
from llava.utils import UserError, shortened

logger = logging.getLogger(__name__)

# what torch, safetensors and tokenizers say, in errors of their own, of a file that cannot be written
_WRITERS = re.compile(r"PytorchStreamWriter|inline_container|I/O error|Parent directory|cannot be opened")
_NUMBER = re.compile(r"\(os error (\d+)\)")
# a folder gets new weights: these of its old files must not stay beside them
_OLD_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", *WEIGHT_INDEXES)


def refuse_input_as_target(target: str | Path, inputs: Sequence[str | Path | None]) -> None:
    """Raise CheckpointError if `target`, the folder to write, is one of the folders that are read."""
    for one in inputs:
        if one is not None and Path(one).is_dir() and Path(one).resolve() == Path(target).resolve():
            raise CheckpointError(
                f"{target} would be overwritten by what is made from it; name a new folder."
            )


def refuse_unwritable(target: str | Path, flag: str = "", *, folder: bool = True) -> None:
    """Raise CheckpointError if `target` cannot be written: before there are minutes of work in it.

    flag: the argument that names it, for the message.
    """
    if reason := obstacle(target, folder=folder):
        raise CheckpointError(f"{_named(target, flag)} cannot be written: {reason}; give another place.")


def refuse_adapter_in(target: str | Path, flag: str = "") -> None:
    """Raise CheckpointError if a folder that gets a whole model holds an adapter; loaders would put it on."""
    if os.path.exists(Path(target) / ADAPTER_CONFIG_FILE):
        raise CheckpointError(
            f"{_named(target, flag)} holds an adapter ({ADAPTER_CONFIG_FILE}), beside which a whole model is "
            "not written: loaders would put it on once more; name another folder."
        )


def _named(target: str | Path, flag: str) -> str:
    return f"{flag} {shortened(target)}".strip()


@contextlib.contextmanager
def whole_folder(target: str | Path, flag: str = "") -> Iterator[Path]:
    """Give a scratch folder; it takes the place of `target` when the block ends without an error.

    Until then, and after a crash, `target` is as it was. Files that `target` has under other names stay, but
    for old weights beside new ones. Raises CheckpointError where the disk does not take what is written.
    flag: the argument that names `target`, for the message.
    """
    refuse_unwritable(target, flag)
    refuse_adapter_in(target, flag)
    with explained_write(target, flag), atomic_folder(target, keep=True, stale=_OLD_WEIGHTS) as scratch:
        yield scratch
        if Path(target).is_dir() and any(one != scratch for one in Path(target).resolve().iterdir()):
            logger.warning("%s exists; its files of the same names, and old weights, are replaced", target)


@contextlib.contextmanager
def explained_write(name: str | Path, flag: str = "") -> Iterator[None]:
    """Turn a failure to write the file or folder `name` into a CheckpointError of one sentence.

    flag: the argument that names it.
    """
    try:
        yield
    except Exception as error:
        if reason := write_failure(error, Path(name).parent):
            raise CheckpointError(
                f"{_named(name, flag)} could not be written: {reason}. It is as it was before."
            ) from error
        raise


def write_failure(error: BaseException, folder: Path) -> str:
    """Say why a file could not be written to `folder`; empty if `error` is about something else.

    The number that the system gave is what counts; where a writer hides it, writing to `folder` is tried.
    """
    if isinstance(error, UserError):
        return ""
    text = shortened(first_line(error))
    if isinstance(error, OSError) and error.errno is not None:
        return words_of(error)
    if found := _NUMBER.search(str(error)):
        number = int(found.group(1))
        return words_of(OSError(number, os.strerror(number)))
    if "No space left" in str(error):
        return DISK_FULL
    of_writer = isinstance(error, RuntimeError) and _WRITERS.search(str(error))
    if of_writer or type(error).__name__ == "SafetensorError":
        met = try_to_write(folder)
        return words_of(met) if met else f"the disk did not take it ({text})"
    return text if isinstance(error, OSError) else ""
