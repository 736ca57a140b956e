"""Files and folders that appear whole or not at all: written aside, on the disk, and only then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import platform
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

LONGEST_NAME = 120  # bytes of a target's name in that of its scratch; 255 is what file systems take


# ---- the two ----


@contextlib.contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Give the path of an empty scratch file; it becomes `target` when the block ends without an error.

    Until then, and after a crash, `target` is as it was; after an error nothing else is left. The file is
    on the disk before it gets its name. It has the permissions of an older `target`, else those that the
    umask gives to new files. A link stays a link: the file that it names is written.
    """
    target = Path(os.path.realpath(target))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", str(target))
    scratch = aside(target, "partial")
    remove_leftovers(scratch)
    try:
        with open(scratch, "xb"):
            mode = (target if target.exists() else scratch).stat().st_mode & 0o777
        yield scratch
        os.chmod(scratch, mode)  # safetensors writes for the owner alone
        sync(scratch)
        os.replace(scratch, target)
    finally:
        with contextlib.suppress(OSError):  # the error of the block is the one to tell
            scratch.unlink(missing_ok=True)
    sync(target.parent)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file in one step; see `atomic_file`. Half characters become the escapes that JSON has."""
    with atomic_file(target) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def atomic_folder(target: str | Path, *, keep: bool = False, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Give a scratch folder; it takes the place of `target` when the block ends without an error.

    Until then, and after a crash, `target` is as it was; after an error nothing else is left. Everything is
    on the disk before it gets its name; an older folder's permissions stay. A folder that cannot be renamed
    (a mount, the working directory, one in a folder that is not writable) is filled with `move_into`.
    keep: files of the old folder whose names the new one lacks stay, but for those that match `stale` where
    the new folder has such files too (old weights beside new ones).
    """
    target = Path(target).resolve()
    inside = target.is_dir() and _is_fixed(target)
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
            if target.is_dir():
                scratch.chmod(target.stat().st_mode & 0o7777)
            exchange(scratch, target, keep=keep, stale=stale)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_fixed(folder: Path) -> bool:
    """Tell whether a folder cannot be renamed, or must not be: programs stand in it."""
    stands_in = Path.cwd().is_relative_to(folder)
    return stands_in or os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK)


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
    own = aside(target, "before")
    stem = own.name.partition(".before-")[0]
    for before in sorted(target.parent.glob(f"{glob.escape(stem)}.before-*")):
        of_here, _, owner = before.name.rpartition("-")
        if of_here == own.name.rpartition("-")[0] and not _is_dead(owner):
            continue  # another process of this machine is between its two renames
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
    """Name a scratch file or folder of this thread beside (or in) `target`; a long name is cut."""
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME // 4]}-{zlib.crc32(os.fsencode(name)):08x}"
    name = f".{name}.{kind}-{platform.node()}-{os.getpid()}.{threading.get_native_id()}"
    return (target if inside else target.parent) / name


def remove_leftovers(scratch: Path) -> None:
    """Remove what processes of this machine that are no more left under the scratch name of a target."""
    stem = scratch.name.rpartition("-")[0]
    for left in scratch.parent.glob(f"{glob.escape(stem)}-*"):
        before, _, number = left.name.rpartition("-")
        if before == stem and _is_dead(number):  # not of a machine whose name only begins the same
            _remove(left)


def _is_dead(owner: str) -> bool:
    """Tell whether the writer "PROCESS.THREAD" is no more.

    In containers a process has the number of the one before it; so one's own number counts only with a thread
    that lives, and this thread's own scratch is left from before.
    """
    process, _, thread = owner.partition(".")
    try:
        if int(process) != os.getpid():
            os.kill(int(process), 0)
            return False
        others = {one.native_id for one in threading.enumerate()} - {threading.get_native_id()}
        return int(thread or 0) not in others
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False  # it belongs to another user, or this is no number


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
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # one may write into it and not list it: then its names cannot be waited for
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot sync folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on the disk; links lead elsewhere."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


# ---- why something could not be written ----

DISK_FULL = "the disk is full"
QUOTA_USED_UP = "the disk quota is used up"
_WORDS = {
    errno.ENOSPC: DISK_FULL,
    errno.EDQUOT: QUOTA_USED_UP,
    errno.EACCES: "it is not writable for you (Permission denied)",
    errno.EPERM: "it is not writable for you (Operation not permitted)",
    errno.EROFS: "it is not writable (Read-only file system)",
    errno.ENAMETOOLONG: "the path, or a name in it, is too long for the file system",
    errno.ENOTDIR: "a part of the path is no folder (Not a directory)",
    errno.EISDIR: "it is a folder (Is a directory)",
    errno.ENOENT: "its folder is missing (No such file or directory)",
}
_PROBE_BYTES = 1024 * 1024
FREE_BYTES_OF_A_FULL_DISK = 16 * 1024 * 1024


def words_of(error: OSError) -> str:
    """Say in a few words what the number of an error means for what was to be written."""
    return _WORDS.get(error.errno or 0) or error.strerror or str(error)


def is_full(words: str) -> bool:
    """Tell whether `words_of` an error ask for room."""
    return words in (DISK_FULL, QUOTA_USED_UP)


def try_to_write(folder: Path, size: int = _PROBE_BYTES) -> OSError | None:
    """Write a small file without a name to a folder; returns the error that this meets, if any."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.isdir(folder):  # /proc takes no files from anybody
            return PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(folder))
        return error
    full = size > 0 and free < FREE_BYTES_OF_A_FULL_DISK
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) if full else None


def obstacle(target: str | Path, *, folder: bool, probe: bool = True) -> str:
    """Say what keeps a file or folder from being written, before there is anything to write; "" for nothing.

    Folders on the way that are missing can be made. probe: try to write; nothing is left of that.
    """
    place = Path(os.path.abspath(target))
    try:
        os.lstat(place)
    except FileNotFoundError:
        pass
    except OSError as error:  # too long, or a file on the way
        return words_of(error)
    if os.path.isdir(place) and not folder:
        return words_of(IsADirectoryError(errno.EISDIR, ""))
    if os.path.exists(place) and not os.path.isdir(place) and folder:
        return "it is a file; expected a folder"
    within = place if folder else place.parent
    existing = next(one for one in (within, *within.parents) if os.path.exists(one))
    if not os.path.isdir(existing):
        return words_of(NotADirectoryError(errno.ENOTDIR, ""))
    met = try_to_write(existing, 0) if probe else None
    return words_of(met) if met else ""
