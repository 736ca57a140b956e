"""What checksums of a checkpoint cost: CRC-32 of its files against writing and reading the same bytes.

usage: python scripts/bench/checksums.py [--megabytes 1024] [--files 4] [--folder DIR] [--repeats 3]
Prints JSON: seconds of each (the best of the repeats), and ratios. Reading is from the disk where the system
drops its cache for a file on request (Linux), "read_cached" from memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llava.atomic import sync
from llava.model.checkpoints.checksums import BLOCK_BYTES, damaged_files, list_files


def _seconds(work: Callable[[], object], before: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _write(files: list[Path], block: bytes, blocks: int) -> None:
    for file in files:
        with file.open("wb", buffering=0) as stream:
            for _ in range(blocks):
                stream.write(block)
        sync(file)


def _read(files: list[Path]) -> None:
    buffer = bytearray(BLOCK_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _forget(files: list[Path]) -> None:
    """Drop the system's copies of files in memory, where it can be asked to."""
    for file in files:
        with file.open("rb") as stream:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, *, megabytes: int, count: int, repeats: int) -> dict[str, float | int | str]:
    """Write files of random bytes into `folder`; return the seconds that each way to touch them takes."""
    files = [folder / f"part-{number}.bin" for number in range(count)]
    blocks = max(1, megabytes * 1024 * 1024 // count // BLOCK_BYTES)
    block = os.urandom(BLOCK_BYTES)
    nothing: Callable[[], object] = lambda: None  # noqa: E731
    write = _seconds(lambda: _write(files, block, blocks), nothing, repeats)
    read_disk = _seconds(lambda: _read(files), lambda: _forget(files), repeats)
    verify_disk = _seconds(lambda: _verified(folder), lambda: (list_files(folder), _forget(files)), repeats)
    read_cached = _seconds(lambda: _read(files), lambda: _read(files), repeats)
    listed = _seconds(lambda: list_files(folder), lambda: _read(files), repeats)
    size = sum(file.stat().st_size for file in files)
    return {
        "bytes": size,
        "processors": os.cpu_count() or 1,
        "machine": platform.processor() or platform.machine(),
        "write_and_sync": round(write, 3),
        "read_from_disk": round(read_disk, 3),
        "read_cached": round(read_cached, 3),
        "checksums_when_saving": round(listed, 3),
        "verify_when_resuming": round(verify_disk, 3),
        "checksum_gigabytes_per_second": round(size / listed / 1e9, 2),
        "saving_ratio": round((write + listed) / write, 2),
        "resuming_ratio": round((read_disk + verify_disk) / read_disk, 2),
        "verify_against_read": round(verify_disk / read_disk, 2),
    }


def _verified(folder: Path) -> None:
    damage = damaged_files(folder)
    assert not damage, damage


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument(
        "--folder", type=Path, help="on the disk that is measured; by default the temporary one"
    )
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result = measure(Path(folder), megabytes=given.megabytes, count=given.files, repeats=given.repeats)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
