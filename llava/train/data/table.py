"""RecordTable: all records behind --data_path as one read-only sequence; load_records opens and checks it."""

from __future__ import annotations

import json
import logging
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.train.data.arrow_cache import fit_memory, map_table, numbers_of, open_table, row_checksum
from llava.train.data.sources import Source, find_sources
from llava.train.records import DataError, Record, explain_unread_key, name_record
from llava.utils import UserError

logger = logging.getLogger(__name__)

FILE_BITS = 40  # a file has fewer than 2**40 records
READS_BEFORE_RELEASE = 1000  # each may map 64 kB


class _Part:
    """The records of one source, and which of them are used in which order."""

    def __init__(
        self, source: Source, cache_dir: str | Path | None, seed: int, *, in_memory: bool = False
    ) -> None:
        self.source = source
        self._table = open_table(source, cache_dir, in_memory=in_memory)
        if not len(self.table):
            bare = all(not file.stat().st_size for file in source.files)
            what = "is an empty file" if bare else "holds an empty list"
            raise DataError(f"{source.name} {what}; there is nothing to train on")
        self.picks = _pick(len(self.table), source, seed)  # None: all, as they stand
        self._reads = 0

    def __getstate__(self) -> dict[str, Any]:
        # a worker process maps the file again instead of getting a copy
        return {**self.__dict__, "_table": self._table.path or self._table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._table, Path):
            path, mapped = self._table, map_table(self._table)
            if mapped is None:
                raise DataError(f"the table {path} is gone; it must stay while training runs")
            self._table = mapped

    @property
    def table(self) -> Any:
        """The Arrow table."""
        return self._table.arrow

    def text(self, index: int) -> str:
        """Return the JSON text of a record."""
        self._reads += 1
        if self._reads % READS_BEFORE_RELEASE == 0:
            self._table.release()
        return self._read("record", self.row(index))

    def _read(self, name: str, row: int) -> Any:
        if self._table.path is None:
            return self.table.column(name)[row].as_py()
        try:
            *values, stored = (column[row].as_py() for column in self.table.columns)
        except ValueError as error:  # bytes that are no text
            raise self.damaged() from error
        if row_checksum(values) != stored:
            raise self.damaged()
        return values[self.table.schema.get_field_index(name)]

    def fault(self, index: int) -> str:
        """Return what conversion found wrong with a record, or ""."""
        return self._read("fault", self.row(index)) or ""

    def damaged(self) -> DataError:
        """Return what is to be said about a table whose content cannot be what was written."""
        return DataError(f"the table {self._table.path} is damaged; delete it, and start again")

    def noted(self, name: str) -> list[tuple[int, str]]:
        """Return (index, text) of the records in use that have an entry in a column of remarks."""
        texts = self.table.column(name)
        if texts.null_count == len(texts):
            return []
        there = numbers_of(texts.is_valid())
        own = there if self.picks is None else there[self.picks]
        return [(int(index), self._read(name, self.row(int(index)))) for index in np.flatnonzero(own)]

    def __len__(self) -> int:
        return len(self.table) if self.picks is None else len(self.picks)

    def rows(self) -> np.ndarray:
        """Return the places in the table of the records in use, each once: (rows,)."""
        return np.arange(len(self.table)) if self.picks is None else np.unique(self.picks)

    def keys(self, numbers: dict[Path, int]) -> np.ndarray:
        """Return a number for each of `rows`, which the same record of a file has in every part: (rows,).

        numbers: of the files; those that have none are added.
        """
        own = [numbers.setdefault(file.resolve(), len(numbers)) for file in self.source.files]
        rows = self.rows()
        if len(own) == 1:
            return (own[0] << FILE_BITS) + rows
        files = numbers_of(self.table.column("file"))
        starts = np.searchsorted(files, np.arange(len(own)))  # the first row of each file
        return (np.array(own)[files[rows]] << FILE_BITS) + rows - starts[files[rows]]

    def split(self, held_out: np.ndarray, held: np.ndarray) -> tuple[_Part, _Part]:
        """Return this part without the records at `held_out`, and one of those at `held`, once each."""
        picks = self.rows() if self.picks is None else self.picks
        rest, other = copy(self), copy(self)
        rest.picks, other.picks = picks[~np.isin(picks, held_out)], np.sort(held)
        return rest, other

    def row(self, index: int) -> int:
        """Return the place in the table of the record at `index`."""
        return index if self.picks is None else int(self.picks[index])

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers in the order of use: (records,)."""
        values = numbers_of(self.table.column(name))
        return values if self.picks is None else values[self.picks]

    def place(self, index: int) -> tuple[Path, int]:
        """Return the file that a record is from, and its number within that file."""
        row = self.row(index)
        files = numbers_of(self.table.column("file")) if len(self.source.files) > 1 else None
        if files is None:
            return self.source.files[0], row
        return self.source.files[files[row]], row - int(np.searchsorted(files, files[row]))


def _pick(count: int, source: Source, seed: int) -> np.ndarray | None:
    """Choose the records of a source: its selection, of these max_samples, each as often as its weight.

    None for all of them once.
    """
    order = random.Random(seed)
    picks = np.arange(count) if source.selection is None else source.selection.places(count, order)
    if source.max_samples is not None and source.max_samples < len(picks):
        picks = picks[np.sort(np.array(order.sample(range(len(picks)), source.max_samples)))]
    if source.weight == 1:
        return None if len(picks) == count else picks
    whole = int(source.weight)
    rest = round((source.weight - whole) * len(picks))
    extra = np.sort(np.array(order.sample(range(len(picks)), rest), dtype=np.int64))
    return np.concatenate([np.tile(picks, whole), picks[extra]])


class RecordTable(Sequence[Record]):
    """Read-only sequence of records; each is built from its JSON text when it is asked for.

    Its memory is the pages of a mapped file, which all processes of a machine share.
    """

    def __init__(self, sources: Sequence[Source], cache_dir: str | Path | None = None) -> None:
        """Open the tables of all sources, converting them if need be. Raises DataError."""
        small = cache_dir is None and fit_memory(sources)
        parts = [_Part(source, cache_dir, seed, in_memory=small) for seed, source in enumerate(sources)]
        self._take(parts)
        if not len(self):
            names = ", ".join(source.name for source in sources)
            raise DataError(f"the weights of {names} leave no record; there is nothing to train on")
        for part in self._parts:
            if not len(part):
                logger.warning("%s: its weight %g leaves no record", part.source.name, part.source.weight)

    def _take(self, parts: list[_Part]) -> None:
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part))

    @property
    def left_out(self) -> int:
        """How many records of the files are not in use."""
        return sum(len(part.table) - len(part.rows()) for part in self._parts)

    def split(self, fraction: float, seed: int = 0) -> tuple[RecordTable, RecordTable]:
        """Hold out a part of the records, at least one; returns the rest and the part.

        No record is in both, also when a mixture uses it several times or in several entries; the part has it
        once. Raises DataError when nothing would be left.
        """
        order = np.random.default_rng(seed)
        numbers: dict[Path, int] = {}
        rows, keys = [part.rows() for part in self._parts], [part.keys(numbers) for part in self._parts]
        places = np.sort(np.unique(np.concatenate(keys), return_index=True)[1])  # of each record the first
        count = max(1, round(fraction * len(places)))
        if count >= len(places):
            raise DataError(f"{count} of {len(places)} records would be held out; none is left to train on")
        held = np.zeros(sum(map(len, rows)), dtype=bool)
        held[places[order.permutation(len(places))[:count]]] = True
        held_keys = np.concatenate(keys)[held]
        by_part = np.split(held, np.cumsum([len(own) for own in rows])[:-1])
        parts = [
            part.split(own[np.isin(key, held_keys)], own[here])
            for part, own, key, here in zip(self._parts, rows, keys, by_part, strict=True)
        ]
        tables = RecordTable.__new__(RecordTable), RecordTable.__new__(RecordTable)
        for table, own in zip(tables, zip(*parts, strict=True), strict=True):
            table._take(list(own))
        return tables

    def __getstate__(self) -> dict[str, Any]:
        return {"_parts": self._parts, "_starts": self._starts}  # without the columns, which are cheap

    def __len__(self) -> int:
        return self._starts[-1]

    def _locate(self, index: int) -> tuple[_Part, int]:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} was asked for; there are {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Build the record at `index`; a slice becomes a list."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        part, own = self._locate(index)
        try:
            return json.loads(part.text(own))
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise part.damaged() from error

    def text(self, index: int) -> str:
        """Return the JSON text of a record as it stood in its file."""
        part, own = self._locate(index)
        return part.text(own)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def words(self) -> np.ndarray:
        """Words in the turns of each record: (records,)."""
        return np.concatenate([part.column("words") for part in self._parts]).astype(np.int64)

    @cached_property
    def with_images(self) -> np.ndarray:
        """Whether each record has an image or a video: (records,)."""
        return np.concatenate([part.column("images") for part in self._parts]) > 0

    @cached_property
    def with_video(self) -> np.ndarray:
        """Whether each record has a video: (records,)."""
        return np.concatenate([part.column("video") for part in self._parts])

    def folders(self, index: int) -> dict[str, str | None]:
        """Return the folders that the `image` and the `video` of a record are relative to, if a mixture
        names them; without one for videos they are with the images."""
        source = self._locate(index)[0].source
        return {"image": source.image_folder, "video": source.video_folder}

    def image_folder(self, index: int) -> str | None:
        """Return the folder that the images of a record are relative to, if the mixture names one."""
        return self.folders(index)["image"]

    def name(self, index: int) -> str:
        """Name a record for a message; with its file when there are several."""
        part, own = self._locate(index)
        file, row = part.place(own)
        several = len(self._parts) > 1 or len(part.source.files) > 1
        return (f"{file}: " if several else "") + name_record(row, self[index])

    def place(self, index: int) -> tuple[Path, int]:
        """Return the file that a record is from, and its number within that file."""
        part, own = self._locate(index)
        return part.place(own)

    def first_with_images(self) -> list[int]:
        """Return the first record with an image, and the first with a video, of each source that has any."""
        found = []
        for start, stop in zip(self._starts, self._starts[1:], strict=False):
            own, videos = self.with_images[start:stop], self.with_video[start:stop]
            for kind in (own & ~videos, videos):
                found.extend((np.flatnonzero(kind)[:1] + start).tolist())
        return sorted(found)

    def fault(self, index: int) -> str:
        """Return what conversion found wrong with a record, or ""."""
        part, own = self._locate(index)
        return part.fault(own)

    def faulty(self) -> list[int]:
        """Return the indices of records in which conversion found a fault."""
        found: list[int] = []
        for part, start in zip(self._parts, self._starts, strict=False):
            faults = part.table.column("fault")
            if faults.null_count < len(faults):
                marks = numbers_of(faults.is_valid())
                own = marks if part.picks is None else marks[part.picks]
                found.extend(int(index) + start for index in np.flatnonzero(own))
        return found

    def tell_selections(self) -> None:
        """Log how many records each sampling_strategy selects, and warn about files that are read twice."""
        for part in self._parts:
            files = Counter(part.source.files)
            twice = [str(file) for file, count in files.items() if count > 1]
            if twice:
                logger.warning(
                    "%s stands for %s more than once; its records are used as often",
                    part.source.name,
                    twice[0],
                )
            if part.source.selection is not None:
                total = len(part.table)
                count = part.source.selection.count(total)
                logger.info(
                    "%s: %s selects %d of %d records", part.source.name, part.source.selection, count, total
                )

    def warn_about_stray_image_tokens(self) -> None:
        """Warn about records without an image whose text holds the image token; it is read as plain text."""
        for part, start in zip(self._parts, self._starts, strict=False):
            found = np.flatnonzero(part.column("stray"))
            if len(found):
                logger.warning(
                    "%s: %d record(s) without an image have %s in their text, the first is %s; "
                    "it is read as text",
                    part.source.name,
                    len(found),
                    DEFAULT_IMAGE_TOKEN,
                    self.name(start + int(found[0])),
                )

    def source_of(self, index: int) -> str:
        """Return the name of the source that a record is from, as the user wrote it."""
        return self._locate(index)[0].source.name

    def entry_of(self, index: int) -> int:
        """Return the number of the mixture's entry that a record is from."""
        return bisect_right(self._starts, index) - 1

    def noted(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield (index, text) of the records with an entry in a column: "id", "unread" or "leaving"."""
        for part, start in zip(self._parts, self._starts, strict=False):
            yield from ((start + own, text) for own, text in part.noted(name))

    def warn_about_unread_keys(self) -> None:
        """Warn about records whose media stand under a key that is not read, with count and an example."""
        for part, start in zip(self._parts, self._starts, strict=False):
            found: dict[str, list[int]] = {}
            for own, key in part.noted("unread"):
                found.setdefault(key, []).append(start + own)
            for key, places in found.items():
                logger.warning(
                    "%s: %d record(s), the first is %s: %s",
                    part.source.name,
                    len(places),
                    self.name(places[0]),
                    explain_unread_key(key),
                )


def load_records(
    data_path: str | Path,
    *,
    image_folder: str | None = None,
    video_folder: str | None = None,
    cache_dir: str | Path | None = None,
    keep_faulty: bool = False,
    every_record: bool = False,
) -> RecordTable:
    """Open all records behind --data_path: .json, .jsonl (or .gz of either), .parquet, folder, mixture.

    image_folder, video_folder: of the sources that name none. keep_faulty: leave records with faults in the
    table, whose `fault` says what is wrong, instead of raising. every_record: for a check, take each of a
    mixture that its sampling_strategy selects once, and warn about none. Raises DataError naming file and
    record.
    """
    sources = find_sources(data_path, image_folder, video_folder)
    if every_record:
        sources = [replace(source, weight=1.0, max_samples=None) for source in sources]
    table = RecordTable(sources, cache_dir)
    faulty = [] if keep_faulty else table.faulty()
    if faulty:
        file, row = table.place(faulty[0])
        raise DataError(f"{file}: {name_record(row, table[faulty[0]])}: {table.fault(faulty[0])}")
    if not every_record:
        table.tell_selections()
        table.warn_about_stray_image_tokens()
        table.warn_about_unread_keys()
    return table
