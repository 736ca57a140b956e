"""Writing folders whole or not at all, and saying in one sentence why a disk did not take something."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.atomic import atomic_folder
from llava.model.checkpoints.files import WEIGHT_INDEXES, CheckpointError, first_line
from llava.utils import UserError, shortened

logger = logging.getLogger(__name__)

DISK_FULL = "the disk is full"
QUOTA_USED_UP = "the disk quota is used up"
_WORDS = {
    errno.ENOSPC: DISK_FULL,
    errno.EDQUOT: QUOTA_USED_UP,
    errno.ENAMETOOLONG: "the path, or a name in it, is too long for the file system",
}
_PROBE_BYTES = 1024 * 1024
FREE_BYTES_OF_A_FULL_DISK = 16 * 1024 * 1024
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


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Give a scratch folder; it takes the place of `target` when the block ends without an error.

    Until then, and after a crash, `target` is as it was. Files that `target` has under other names stay, but
    for old weights beside new ones. Raises CheckpointError where the disk does not take what is written.
    """
    with explained_write(target):
        if Path(target).exists() and not Path(target).is_dir():
            raise CheckpointError(f"{target} is a file; expected a folder to write to.")
        with atomic_folder(target, keep=True, stale=_OLD_WEIGHTS) as scratch:
            yield scratch
            if Path(target).is_dir() and any(one != scratch for one in Path(target).resolve().iterdir()):
                logger.warning(
                    "%s exists; its files of the same names, and old weights, are replaced", target
                )


@contextlib.contextmanager
def explained_write(name: str | Path) -> Iterator[None]:
    """Turn a failure to write the file or folder `name` into a CheckpointError of one sentence."""
    try:
        yield
    except Exception as error:
        if reason := write_failure(error, Path(name).parent):
            raise CheckpointError(
                f"{shortened(name)} could not be written: {reason}. It is as it was before."
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
        return _words(error.errno)
    if found := _NUMBER.search(str(error)):
        return _words(int(found.group(1)))
    if "No space left" in str(error):
        return DISK_FULL
    of_writer = isinstance(error, RuntimeError) and _WRITERS.search(str(error))
    if of_writer or type(error).__name__ == "SafetensorError":
        number = _try_to_write(folder)
        return _words(number) if number else f"the disk did not take it ({text})"
    return text if isinstance(error, OSError) else ""


def _words(number: int) -> str:
    return _WORDS.get(number) or os.strerror(number)


def _try_to_write(folder: Path) -> int:
    """Return the number of the error that writing a small file to `folder` meets, 0 if it meets none."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        return errno.ENOSPC if shutil.disk_usage(folder).free < FREE_BYTES_OF_A_FULL_DISK else 0
    except OSError as error:
        return error.errno or errno.EIO
