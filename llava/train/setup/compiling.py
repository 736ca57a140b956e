"""DeepSpeed's parts are compiled at first use: says so, and clears locks that killed compilations left."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

# Where nothing has been written for so long, and no process here holds the lock, nobody compiles: one source
# file of DeepSpeed takes less.
QUIET_SECONDS = 120.0
LOCK = "lock"  # of torch.utils.cpp_extension, one in the folder of each extension


def extension_folder() -> Path:
    """Return where torch compiles extensions."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given is not None:
        return Path(given)
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())


def is_built(name: str) -> bool:
    """Tell whether torch has compiled an extension here before."""
    return any(any(extension_folder().glob(f"{place}{name}/*.so")) for place in ("", "*/"))


def clear_dead_locks(*, quiet_seconds: float = QUIET_SECONDS, poll_seconds: float = 1.0) -> list[Path]:
    """Remove locks of compilations that were killed; torch would wait for them without end or a word.

    A lock is dead when no process of this machine holds it open, as the one that compiles does, and nothing
    in its folder has changed for `quiet_seconds`, as a compilation on another machine would. Waits for that
    long at most, and says so. Returns the locks that were removed.
    """
    removed = []
    folder = extension_folder()
    for lock in sorted([*folder.glob(f"*/{LOCK}"), *folder.glob(f"*/*/{LOCK}")]):
        told = False
        while (number := _inode(lock)) is not None:
            owner = _owner(lock)
            if owner is not None:
                logger.info("process %d compiles %s; waiting for it", owner, lock.parent)
                break
            left = quiet_seconds - _quiet_for(lock.parent)
            if left <= 0:
                if _inode(lock) == number:  # not that of a process that has just begun
                    lock.unlink(missing_ok=True)
                    removed.append(lock)
                    logger.warning("removed %s: whoever compiled there was stopped", lock)
                break
            if not told:
                told = True
                logger.warning(
                    "%s is the lock of a compilation, and no process of this machine holds it; unless "
                    "something changes there it is removed in %.0f s. To go on at once, remove it: rm %s",
                    lock,
                    left,
                    lock,
                )
            time.sleep(min(poll_seconds, left))
    return removed


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None


def _quiet_for(folder: Path) -> float:
    """Return how many seconds ago something in a folder was written."""
    times = [0.0]
    for file in folder.iterdir():
        try:
            times.append(file.stat().st_mtime)
        except OSError:  # removed meanwhile
            continue
    return time.time() - max(times)


def _owner(lock: Path) -> int | None:
    """Return the number of a process that has the lock open, None if none is seen."""
    target = os.path.realpath(lock)
    return next((number for number, path in _open_files() if path == target), None)


def _open_files() -> Iterator[tuple[int, str]]:
    """Yield the files that processes have open, as far as this user may see them (Linux)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for link in os.listdir(process / "fd"):
                yield int(process.name), os.readlink(process / "fd" / link)
        except OSError:  # ended, or of another user
            continue
