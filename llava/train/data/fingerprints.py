"""Fingerprints of data files: a table in the cache belongs to exactly the bytes that it was made from."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from llava.train.records import DataError

SAMPLE_BYTES = 64 * 1024  # of the head, the middle and the tail
BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class FileState:
    """A data file as it is now. Reading it takes a millisecond, however large the file is.

    `sample` is a checksum of its head, middle and tail. `changed_ns` is the time of the last change of
    content or attributes, which no program can set back; it also moves when a file is merely renamed.
    """

    size: int
    modified_ns: int
    changed_ns: int
    sample: int


def state_of(path: Path) -> FileState:
    """Look at a data file. Raises DataError."""
    try:
        found = path.stat()
        with path.open("rb") as file:
            sample = 0
            for start in (0, found.st_size // 2, max(0, found.st_size - SAMPLE_BYTES)):
                file.seek(start)
                sample = zlib.crc32(file.read(SAMPLE_BYTES), sample)
    except OSError as error:
        raise DataError(
            f"cannot read the data file {path}: {error.strerror or error}; check --data_path"
        ) from error
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, sample)


def checksum(path: Path) -> int:
    """Return the checksum of a whole file, at about a gigabyte a second."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            total = zlib.crc32(block, total)
    return total


def describe_sources(files: tuple[Path, ...], states: list[FileState]) -> bytes:
    """Return what a table keeps about the files it is made from: times of change and whole checksums."""
    return json.dumps(
        [[state.changed_ns, checksum(file)] for file, state in zip(files, states, strict=True)]
    ).encode()


def same_sources(kept: bytes, files: tuple[Path, ...], states: list[FileState]) -> bool:
    """Tell whether files are those that a table was made from; one that was touched is read to find out."""
    try:
        pairs = json.loads(kept)
        return len(pairs) == len(files) and all(
            state.changed_ns == changed or checksum(file) == total
            for (changed, total), file, state in zip(pairs, files, states, strict=True)
        )
    except (ValueError, TypeError):
        return False
