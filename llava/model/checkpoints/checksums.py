"""checkpoint_files.json: names, sizes and checksums of the files of a checkpoint, to tell a damaged copy.

CRC-32 is in Python, about as fast as a disk reads, and notices every flipped byte. It guards against faults
of disks and copies, not against somebody who wants to deceive.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llava.atomic import write_text
from llava.model.checkpoints.files import CheckpointError, first_line

# Written last: a copy of the folder that was cut off is told by this.
INDEX_FILE = "checkpoint_files.json"
BLOCK_BYTES = 4 * 1024 * 1024
THREADS = 4
# Of a fingerprint: larger files are known by their size and so many parts, evenly spaced.
WHOLE_BYTES = 16 * 1024 * 1024
PARTS = 64
PART_BYTES = 64 * 1024
PICKLED = (".pt", ".pth", ".bin")
OLD_PICKLE = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # files of torch before 1.6 begin with it; they have no checksums
)


def checksum(file: Path) -> str:
    """Return the CRC-32 of a file as 8 hexadecimal digits."""
    value = 0
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            value = zlib.crc32(buffer[:count], value)
    return f"{value:08x}"


def fingerprint(files: Iterable[Path], *, parts: int = PARTS) -> str | None:
    """Return a hash of files: names, sizes and content, of large files `parts` blocks; None without any."""
    total = hashlib.sha256()
    whole = WHOLE_BYTES * parts // PARTS
    count = 0
    for file in files:
        count += 1
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= whole:
                total.update(stream.read())
                continue
            for number in range(parts):
                stream.seek((size - PART_BYTES) * number // (parts - 1))
                total.update(stream.read(PART_BYTES))
    return f"sha256:{total.hexdigest()}" if count else None


def list_files(folder: Path) -> None:
    """Write the list of a folder's files into it; files of an earlier list are counted again."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != INDEX_FILE)
    names = [file.relative_to(folder).as_posix() for file in files]
    with ThreadPoolExecutor(THREADS) as pool:  # crc32 lets other threads run
        sums = list(pool.map(checksum, files))
    sizes = [file.stat().st_size for file in files]
    content = {"files": dict(zip(names, sizes, strict=True)), "crc32": dict(zip(names, sums, strict=True))}
    write_text(folder / INDEX_FILE, json.dumps(content, indent=1, sort_keys=True))


def read_list(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Return sizes and checksums by name; lists of older versions have no checksums.

    Raises CheckpointError for a list that cannot be read.
    """
    file = folder / INDEX_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        sizes, sums = dict(content["files"]), dict(content.get("crc32", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({first_line(error)})") from error
    return sizes, sums


def damaged_files(folder: Path, *, part: int = 0, parts: int = 1) -> list[str]:
    """Compare the files of a folder with its list; returns what is wrong with each damaged one.

    Reads all of them, or the share `part` of `parts` processes. A folder without checksums has no damage
    that could be seen. Raises CheckpointError for a list that cannot be read.
    """
    if not (folder / INDEX_FILE).is_file():
        return []
    sizes, sums = read_list(folder)
    # the largest first, so that each process gets its share of bytes
    names: Sequence[str] = sorted(sums, key=lambda name: (-int(sizes.get(name, 0)), name))[part::parts]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _damage(folder / name, name, sums[name]), names)
        return [one for one in found if one]


def _damage(file: Path, name: str, expected: str) -> str:
    try:
        found = checksum(file)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    return "" if found == expected else f"{name} is damaged: its checksum is {found}, {expected} was written"


def unsound_files(folder: Path, *, part: int = 0, parts: int = 1) -> list[str]:
    """Look for damage that shows without a list of checksums; returns what is wrong with each such file.

    Files of torch carry checksums of their own, safetensors and JSON are complete or not. Reads all files of
    torch, or the share `part` of `parts` processes.
    """
    files = [file for file in folder.rglob("*") if file.is_file()]
    files.sort(key=lambda file: (-file.stat().st_size, file.as_posix()))
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda file: _unsound(file, file.relative_to(folder).as_posix()), files[part::parts])
        return [one for one in found if one]


def _unsound(file: Path, name: str) -> str:
    try:
        if file.suffix in PICKLED:
            return f"{name} is damaged or cut off" if _torch_file_is_damaged(file) else ""
        if file.suffix == ".safetensors":
            return f"{name} is damaged or cut off" if file.stat().st_size != _safetensors_size(file) else ""
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        return f"{name} cannot be read ({first_line(error)})"
    return ""


def _torch_file_is_damaged(file: Path) -> bool:
    """Compare the parts of a file that torch.save wrote, a zip, with the checksums in it."""
    try:
        with zipfile.ZipFile(file) as parts:
            return parts.testzip() is not None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        with file.open("rb") as stream:
            return stream.read(len(OLD_PICKLE)) != OLD_PICKLE


def _safetensors_size(file: Path) -> int:
    """Return how many bytes a safetensors file has, as its header says."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > file.stat().st_size:
            return -1
        header = json.loads(stream.read(length))
    return (
        8
        + length
        + max(
            (value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"), default=0
        )
    )
