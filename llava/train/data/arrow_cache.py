"""Records as Arrow tables: converted once per machine, then memory-mapped by every process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.atomic import atomic_file, obstacle, words_of
from llava.train.data.fingerprints import FileState, describe_sources, same_sources, state_of
from llava.train.data.readers import ReadRecord, read_rows
from llava.train.data.sources import Source
from llava.train.records import (
    DataError,
    Record,
    find_fault,
    has_media,
    has_video,
    leaving_name,
    media_names,
    stray_image_tokens,
    unread_media_key,
)
from llava.utils import shortened, watched

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

FORMAT_VERSION = 4
# Smaller inputs are converted in memory at every start; it takes less than a second.
IN_MEMORY_BYTES = 16 * 1024 * 1024
PACKING = 6  # how many times larger a gzip file of text is about when it is unpacked
SOURCES_KEY = b"llava.sources"  # in the metadata of a table's schema
BATCH_CHARACTERS = 8 * 1024 * 1024
CACHE_FOLDER = ".llava_cache"
HOME_CACHE = Path("~/.cache/llava")


@dataclass(frozen=True)
class Table:
    """An Arrow table, and the file and mapping that it lies in; neither for a table in memory."""

    arrow: pa.Table
    path: Path | None = None
    pages: mmap.mmap | None = None

    def release(self) -> None:
        """Unmap the pages that were read; they stay in the machine's cache and are mapped again when needed.

        Without this, each process would seem to own a copy of the whole table after an epoch.
        """
        if self.pages is not None and hasattr(self.pages, "madvise"):
            self.pages.madvise(mmap.MADV_DONTNEED)


def fit_memory(sources: Sequence[Source]) -> bool:
    """Tell whether the files of sources are so small, all together, that they are read at every start.

    Raises DataError.
    """
    total = 0
    for file in (file for source in sources for file in source.files):
        total += state_of(file).size * (PACKING if file.suffix.lower() == ".gz" else 1)
    return total <= IN_MEMORY_BYTES


def open_table(source: Source, cache_dir: str | Path | None = None, *, in_memory: bool = False) -> Table:
    """Return the records of a source as a table.

    Columns: record (JSON text), words, images (counts), video (whether it has one), stray (image token
    without image), fault (null when there is none), file (number of the file within the source), id (as
    JSON), unread (a key that resembles `image` or `video`), leaving (a name that is absolute or climbs out
    of its folder), checksum (of the other columns, see `row_checksum`). The table is kept in `cache_dir`, by
    default in a folder beside the data, else under ~/.cache/llava. in_memory: it is kept nowhere.
    Raises DataError.
    """
    states = [state_of(path) for path in source.files]
    total = sum(state.size for state in states)
    if in_memory:
        import pyarrow

        batches = list(_batches(source, lambda count: None))
        return Table(pyarrow.Table.from_batches(batches, schema=_schema()))
    name = _cache_name(source, states)
    folders = _cache_folders(source, cache_dir)
    for folder in folders:
        table = _map_current(folder / name, source, states)
        if table is not None:
            return table
    path = _writable(folders) / name
    with _one_process(path, source.name):
        table = _map_current(path, source, states)  # another process may have been first
        if table is None:
            _convert(source, path, total, states)
            if [state_of(one) for one in source.files] != states:
                path.unlink(missing_ok=True)
                raise DataError(f"{source.name} changed while it was read; start again when it is complete")
            table = map_table(path)
    if table is None:
        raise DataError(f"the table {path} vanished or is damaged; choose another --data_cache_dir")
    return table


def _map_current(path: Path, source: Source, states: list[FileState]) -> Table | None:
    """Map a table if there is one of the files as they are now."""
    table = map_table(path)
    if table is None:
        return None
    kept = (table.arrow.schema.metadata or {}).get(SOURCES_KEY, b"")
    if same_sources(kept, source.files, states):
        return table
    logger.warning("%s changed, though not in size and time; its table is made again", source.name)
    return None


def map_table(path: Path) -> Table | None:
    """Map a table into memory without reading it; None when there is none, or it is damaged."""
    import pyarrow

    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        options = pyarrow.ipc.IpcReadOptions(use_threads=False)
        buffer = pyarrow.py_buffer(pages)  # the table's columns point into the mapping
        arrow = pyarrow.ipc.open_file(buffer, options=options).read_all()
        _check_table(arrow)
        return Table(arrow, path, pages)
    # ValueError: an empty file; pyarrow raises many more for rubbish in its headers
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        logger.warning("the table %s cannot be used and is made again: %s", path, shortened(error))
        return None


def _check_table(arrow: pa.Table) -> None:
    """Raise ValueError for a table of other columns, or with texts that do not lie within its data.

    Reads places, not texts: milliseconds for a million records.
    """
    import pyarrow

    if not arrow.schema.equals(_schema()):  # without metadata
        raise ValueError("it has other columns")
    arrow.validate()
    for column in arrow.columns:
        for chunk in column.chunks if pyarrow.types.is_string(column.type) else ():
            _, places, texts = chunk.buffers()
            ends = np.frombuffer(places, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            if (np.diff(ends) < 0).any() or ends[0] < 0 or ends[-1] > (texts.size if texts else 0):
                raise ValueError("its texts do not lie where it says")


def numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of numbers or truth values without nulls: (rows,).

    pyarrow's own `to_numpy` imports pandas where it is installed: half a second and 35 MB in each process.
    """
    import pyarrow

    truth = pyarrow.types.is_boolean(column.type)
    column = column.cast(pyarrow.uint8()) if truth else column
    kind = np.dtype(str(column.type))
    parts = [
        np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * kind.itemsize)
        for chunk in column.chunks
    ]
    return np.concatenate([np.empty(0, kind), *parts]).astype(bool if truth else kind, copy=False)


def _schema() -> pa.Schema:
    import pyarrow

    return pyarrow.schema(
        [
            ("record", pyarrow.string()),
            ("words", pyarrow.int32()),
            ("images", pyarrow.int16()),
            ("video", pyarrow.bool_()),
            ("stray", pyarrow.bool_()),
            ("fault", pyarrow.string()),
            ("file", pyarrow.int32()),
            ("id", pyarrow.string()),
            ("unread", pyarrow.string()),
            ("leaving", pyarrow.string()),
            ("checksum", pyarrow.uint32()),
        ]
    )


# ---- conversion ----


def _batches(source: Source, advance: Callable[[int], object]) -> Iterator[pa.RecordBatch]:
    """Read all files of a source and yield their records in batches of a few megabytes."""
    import pyarrow

    schema = _schema()
    rows: list[tuple[Any, ...]] = []
    characters = 0
    for number, path in enumerate(source.files):
        for row in read_rows(path, advance):
            values = (row.text, *_columns(row), number, *_remarks(row.record))
            rows.append((*values, row_checksum(values)))
            characters += len(row.text)
            if characters >= BATCH_CHARACTERS:
                yield pyarrow.record_batch(list(zip(*rows, strict=True)), schema=schema)
                rows, characters = [], 0
    if rows:
        yield pyarrow.record_batch(list(zip(*rows, strict=True)), schema=schema)


def row_checksum(values: Sequence[str | int | None]) -> int:
    """Return the CRC-32 of a row's columns but the last, which holds it."""
    return zlib.crc32("\0".join(map(str, values)).encode())


def _columns(row: ReadRecord) -> tuple[int, int, bool, bool, str | None]:
    """Return words, images (a video is one), video, stray and fault of a record."""
    record = row.record
    fault = row.fault or find_fault(record)
    video = isinstance(record, dict) and has_video(record)
    if not fault:
        images = 1 if video else len(media_names(record))
        words = sum(len(turn["value"].split()) for turn in record["conversations"])
        return words, images, video, images == 0 and stray_image_tokens(record), None
    with_media = isinstance(record, dict) and has_media(record)
    return 1, int(with_media), video, False, fault


def _remarks(record: Record) -> tuple[str | None, str | None, str | None]:
    """Return id, unread key and leaving image name of a record, as far as it can be read."""
    if not isinstance(record, dict):
        return None, None, None
    own = record.get("id")
    readable = all(isinstance(name, str) for name in media_names(record))
    found = (
        None if own is None else json.dumps(own, default=str),
        unread_media_key(record),
        leaving_name(record) if readable else None,
    )
    # half a character cannot be stored
    return tuple(one and one.encode(errors="replace").decode() for one in found)  # type: ignore[return-value]


def _convert(source: Source, path: Path, total: int, states: list[FileState]) -> None:
    """Write the table of a source, whole or not at all."""
    import pyarrow
    from tqdm.auto import tqdm

    logger.info("converting %s (%.0f MB) to the table %s; this is done once", source.name, total / 1e6, path)
    count = 0
    try:
        schema = _schema().with_metadata({SOURCES_KEY: describe_sources(source.files, states)})
        # no bar where nobody sees it, such as a log file
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"reading {source.name}", disable=None)
        with atomic_file(path) as scratch, bar, pyarrow.ipc.new_file(str(scratch), schema) as writer:
            for batch in _batches(source, bar.update):
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
                count += len(batch)
    except OSError as error:
        raise DataError(
            f"cannot write the table {shortened(path)}: {words_of(error)}; it needs about "
            f"{total / 1e6:.0f} MB, choose another folder with --data_cache_dir"
        ) from error
    logger.info("%s: %d records converted", source.name, count)


@contextlib.contextmanager
def _one_process(path: Path, name: str) -> Iterator[None]:
    """Let one process at a time past, on file systems that have locks."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(path) + ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process converts %s; waiting for it", name)
        remedy = f"if no process does, remove {path}.lock"
        with watched(f"another process to convert {name}", remedy):
            lock.acquire()
    except (NotImplementedError, OSError) as error:
        # each process then converts for itself, and the last rename wins: slower, and as safe
        logger.warning("no file lock in %s (%s); processes may convert %s twice", path.parent, error, name)
    try:
        yield
    finally:
        if lock.is_locked:
            lock.release()


# ---- where tables are kept ----


def _cache_name(source: Source, states: Sequence[FileState]) -> str:
    """Name a table after what it was made from: paths, sizes, times, and a sample of the content."""
    files = [
        [str(path.resolve()), state.size, state.modified_ns, state.sample]
        for path, state in zip(source.files, states, strict=True)
    ]
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, files]).encode()).hexdigest()
    return f"{source.files[0].stem}-{digest[:20]}.arrow"


def _cache_folders(source: Source, cache_dir: str | Path | None) -> list[Path]:
    """Return where the table of a source may be, the best place first."""
    if cache_dir is not None:
        return [Path(cache_dir).expanduser()]
    return [source.files[0].resolve().parent / CACHE_FOLDER, HOME_CACHE.expanduser()]


def _writable(folders: Sequence[Path]) -> Path:
    """Return the first folder that can be made and written to. Raises DataError."""
    reasons = []
    for folder in folders:
        if reason := obstacle(folder, folder=True):
            reasons.append(reason)
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        except OSError as error:
            reasons.append(words_of(error))
    places = " or ".join(map(shortened, folders))
    raise DataError(
        f"cannot write to {places} ({', or '.join(dict.fromkeys(reasons))}); name a folder for tables with "
        "--data_cache_dir"
    )
