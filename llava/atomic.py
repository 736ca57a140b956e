"""Files and folders that appear whole or not at all: written aside, on the disk, and only then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import platform
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

LONGEST_NAME = 120  # bytes of a target's name in that of its scratch; 255 is what file systems take


# ---- the two ----


@contextlib.contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Give the path of an empty scratch file; it becomes `target` when the block ends without an error.

    Until then, and after a crash, `target` is as it was; after an error nothing else is left. The file is
    on the disk before it gets its name, and has the permissions that the umask gives to new files.
    """
    target = Path(target)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", str(target))
    scratch = aside(target, "partial")
    remove_leftovers(scratch)
    try:
        with open(scratch, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        yield scratch
        os.chmod(scratch, mode)  # safetensors writes for the owner alone
        sync(scratch)
        os.replace(scratch, target)
    finally:
        with contextlib.suppress(OSError):  # the error of the block is the one to tell
            scratch.unlink(missing_ok=True)
    sync(target.parent)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file in one step; see `atomic_file`."""
    with atomic_file(target) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_folder(target: str | Path, *, keep: bool = False, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Give a scratch folder; it takes the place of `target` when the block ends without an error.

    Until then, and after a crash, `target` is as it was; after an error nothing else is left. Everything is
    on the disk before it gets its name. keep: files of the old folder whose names the new one lacks stay, but
    for those that match `stale` where the new folder has such files too (old weights beside new ones). A
    folder that cannot be renamed (a mount, the working directory) is filled with `move_into`.
    """
    target = Path(target).resolve()
    inside = target.is_dir() and (os.path.ismount(target) or Path.cwd().is_relative_to(target))
    scratch = aside(target, "partial", inside=inside)
    target.parent.mkdir(parents=True, exist_ok=True)
    _take_back(target, keep=keep, stale=stale)
    remove_leftovers(scratch)
    try:
        scratch.mkdir()
        yield scratch
        for file in scratch.rglob("*.safetensors"):
            let_others_read(file)
        if inside:
            _empty(target, scratch, keep=keep, stale=stale)
            move_into(scratch, target, last=("config.json",))
        else:
            exchange(scratch, target, keep=keep, stale=stale)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ---- their second halves, for what several processes have written ----


def exchange(
    scratch: Path, target: Path, *, before: Path | None = None, keep: bool = False, stale: Sequence[str] = ()
) -> None:
    """Put a written folder in the place of `target` by renaming; see `atomic_folder` for keep and stale.

    before: the name that an older `target` has between the two renames, and after a crash there.
    """
    sync_tree(scratch)
    before = before or aside(target, "before")
    if target.exists():
        os.replace(target, before)
    try:
        os.replace(scratch, target)
    finally:
        if before.exists():
            _settle(before, target, keep=keep, stale=stale)
    sync(target.parent)


def move_into(scratch: Path, target: Path, *, last: Sequence[str] = ()) -> None:
    """Move the files of a written folder into `target`, which may hold others; `scratch` is gone then.

    last: the names whose presence makes a folder look complete. They go from `target` first and come last,
    so that a crash in between leaves a folder that does not look complete.
    """
    sync_tree(scratch)
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(scratch.iterdir(), key=lambda one: one.name in last and last.index(one.name) + 1)
    for name in reversed(last):
        if (scratch / name).exists():
            (target / name).unlink(missing_ok=True)
    for file in files:
        place = target / file.name
        if place.is_dir():
            shutil.rmtree(place)
        if file == files[-1]:
            sync(target)  # all others are there before the one that completes the folder
        os.replace(file, place)
    sync(target)
    scratch.rmdir()


def move(source: Path, place: Path) -> None:
    """Rename a file or folder; the name is on the disk when it returns."""
    os.replace(source, place)
    sync(place.parent)


def _settle(before: Path, target: Path, *, keep: bool, stale: Sequence[str]) -> None:
    """Move into `target` what only `before` has, if that is kept, and remove `before`; or put it back."""
    if not target.exists():
        os.replace(before, target)
        return
    if keep:
        new = any(any(target.glob(pattern)) for pattern in stale)
        old = {file for pattern in stale for file in before.glob(pattern)} if new else set()
        for file in before.iterdir():
            if file not in old and not (target / file.name).exists():
                os.replace(file, target / file.name)
    shutil.rmtree(before, ignore_errors=not keep)


def _take_back(target: Path, *, keep: bool, stale: Sequence[str]) -> None:
    """Finish or undo an exchange that a crash cut off."""
    stem = aside(target, "before").name.partition(".before-")[0]
    for before in sorted(target.parent.glob(f"{glob.escape(stem)}.before-*")):
        _settle(before, target, keep=keep, stale=stale)


def _empty(target: Path, scratch: Path, *, keep: bool, stale: Sequence[str]) -> None:
    """Remove from a folder that is filled in place what the new one does not keep; config.json goes first."""
    (target / "config.json").unlink(missing_ok=True)
    doomed = {file for pattern in stale for file in target.glob(pattern)} if keep else set(target.iterdir())
    for file in doomed - {scratch}:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()


# ---- scratch names ----


def aside(target: Path, kind: str, *, inside: bool = False) -> Path:
    """Name a scratch file or folder of this process beside (or in) `target`; a long name is cut."""
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME // 4]}-{zlib.crc32(os.fsencode(name)):08x}"
    name = f".{name}.{kind}-{platform.node()}-{os.getpid()}"
    return (target if inside else target.parent) / name


def remove_leftovers(scratch: Path) -> None:
    """Remove what processes of this machine that are no more left under the scratch name of a target."""
    stem = scratch.name.rpartition("-")[0]
    for left in scratch.parent.glob(f"{glob.escape(stem)}-*"):
        before, _, number = left.name.rpartition("-")
        if before == stem and _is_dead(number):  # not of a machine whose name only begins the same
            _remove(left)


def _is_dead(number: str) -> bool:
    """Tell whether a process is no more; an earlier one of this process's own number is."""
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False  # it belongs to another user, or this is no number
    return int(number) == os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


# ---- on the disk, for others to read ----


def let_others_read(file: Path) -> None:
    """Give a file the permissions that new files have here; safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


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
