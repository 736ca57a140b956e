"""Files that grow by whole lines, each on the disk when it counts; several processes may write at once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from llava.atomic import sync, words_of, write_text
from llava.utils import UserError, shortened

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: one process may write
    fcntl = None

logger = logging.getLogger(__name__)

_BLOCK = 64 * 1024  # bytes that are read at a time when the last line is sought


class LineFile:
    """A file of JSON lines that lines are appended to.

    `append` returns when the lines are on the disk. What a kill or a crash cut off is removed before the next
    line is written, an end that only lacks its line break gets one. Other processes of this machine
    may append to the same file, and one may put another file in its place with `rewrite`, meanwhile.
    """

    def __init__(self, path: str | Path) -> None:
        """Open nothing yet; raises UserError where a folder stands in the file's place."""
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f"{shortened(self.path)} is a folder; expected a file of JSON lines")
        self._file: BinaryIO | None = None

    def append(self, lines: Iterable[str]) -> None:
        """Write lines at the end; after an error none of them is there. Raises UserError."""
        data = memoryview("".join(f"{one}\n" for one in lines).encode("utf-8", "backslashreplace"))
        try:
            with self._locked() as file:
                _mend(file, self.path)
                size = os.fstat(file.fileno()).st_size
                try:
                    done = 0
                    while done < len(data):
                        done += file.write(data[done:])
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(size)
                    raise
        except OSError as error:
            raise UserError(
                f"{shortened(self.path)} cannot be written: {words_of(error)}; what it held is still there"
            ) from error

    def mend(self) -> None:
        """Remove a last line that was cut off, if the file is there."""
        if self.path.exists():
            self.append(())

    def rewrite(self, make_lines: Callable[[], Iterable[str]]) -> None:
        """Put other lines in the place of all, made of those that are there while nobody else can append."""
        with self._locked() as file:
            _mend(file, self.path)
            write_text(self.path, "".join(f"{one}\n" for one in make_lines()))
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Give the file that has the name now, kept from other processes."""
        while True:
            if self._file is None:
                self._file = _open(self.path)
            _lock(self._file, True)
            if _is_at(self._file, self.path):
                break
            self.close()  # another process has put another file there
        try:
            yield self._file
        finally:
            _lock(self._file, False)


def _open(path: Path) -> BinaryIO:
    """Open a file for appending; a new one's name is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 (it stays open)
    if is_new:
        sync(path.parent)
    return file


def _lock(file: BinaryIO, wanted: bool) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(file, fcntl.LOCK_EX if wanted else fcntl.LOCK_UN)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Tell whether an open file is the one that has the name."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file.fileno()))


def _mend(file: BinaryIO, path: Path) -> None:
    """Let the file end with a whole line."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start and b"\n" not in tail:
        end, start = start, max(0, start - _BLOCK)
        file.seek(start)
        tail = file.read(end - start) + tail
        if tail.endswith(b"\n"):
            return
    rest = tail.rpartition(b"\n")[2]
    if not rest:
        return
    text = rest.decode("utf-8", "surrogateescape")
    _, end, fault = whole_objects(text)
    whole = len(text[:end].encode("utf-8", "surrogateescape"))
    if fault:
        cut = len(rest) - whole
        logger.warning("the last line of %s was cut off after %d bytes; it is removed", path, cut)
        file.truncate(size - cut)
    if whole:
        file.write(b"\n")


def whole_objects(line: str) -> tuple[list[dict[str, Any]], int, str]:
    """Return the JSON objects that a line begins with, where they end, and what is wrong behind them.

    Most lines are one object; some programs write several without a break between them.
    """
    decoder, place, end = json.JSONDecoder(), 0, 0
    found: list[dict[str, Any]] = []
    while True:
        while place < len(line) and line[place].isspace():
            place += 1
        if place == len(line):
            return found, end, ""
        try:
            value, place = decoder.raw_decode(line, place)
        except (ValueError, RecursionError) as error:
            return found, end, str(error)
        if not isinstance(value, dict):
            return found, end, f"it is a {type(value).__name__}"
        found.append(value)
        end = place
