"""Readers of record files (JSON list, JSON lines, both also gzipped, parquet), a few records at a time."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import IO, Any

from llava.train.records import DataError, Record, kind_of

CHUNK_BYTES = 4 * 1024 * 1024
# An error this close to the end of what has been read may only say that the rest is missing.
CUT_CHARACTERS = 16
PARQUET_ROWS = 1024

Advance = Callable[[int], object]  # told how many bytes have been read

GZIP_START = b"\x1f\x8b"

_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA_AT_END = re.compile(r",\s*[]}]")
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class ReadRecord:
    """One record as it stands in its file: its JSON text, its value, and why it cannot be read, if so."""

    text: str
    record: Any  # a Record; None where it could not be read
    fault: str = ""


def read_rows(path: Path, advance: Advance) -> Iterator[ReadRecord]:
    """Yield the records of a .jsonl or .parquet file, or of any other file as a JSON list; .gz is unpacked.

    Raises DataError when the file cannot be read, or is not of its kind.
    """
    readers = {".jsonl": _read_lines, ".jsonl.gz": _read_lines, ".parquet": _read_parquet}
    reader = readers.get(ending(path), _read_list)
    try:
        yield from reader(path, advance)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not a whole gzip file ({error}); copy it again, or rename it if it is not packed"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot read the data file {path}: {reason}; check --data_path") from error


def ending(path: Path) -> str:
    """Return what the name of a data file ends with, such as ".json" or ".jsonl.gz"."""
    packed = path.suffix.lower() == ".gz"
    return (path.with_suffix("").suffix + path.suffix if packed else path.suffix).lower()


@contextlib.contextmanager
def _open_bytes(path: Path, advance: Advance) -> Iterator[tuple[IO[bytes], Advance]]:
    """Open a file for reading, unpacked; returns it, and what is to be told of bytes read from it."""
    with path.open("rb") as file:
        if path.suffix.lower() != ".gz":
            yield file, advance
            return
        told = 0

        def advance_packed(_: int) -> None:
            nonlocal told
            advance(file.tell() - told)
            told = file.tell()

        with gzip.open(file) as unpacked:
            yield unpacked, advance_packed  # type: ignore[misc]


# ---- JSON lists ----


class _Window:
    """The part of a text file that is being read: decoded text that moves forward through the file."""

    def __init__(self, file: IO[bytes], path: Path, advance: Advance) -> None:
        self.path = path
        self.text = ""
        self.position = 0
        self._file = file
        self._advance = advance
        self._line = 1  # of the first character of `text`
        self._offset = 0  # bytes handed to the decoder
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def extend(self) -> bool:
        """Drop what lies behind, read more; returns False at the end of the file."""
        data = self._file.read(max(CHUNK_BYTES, len(self.text) - self.position))
        pending = len(self._decoder.getstate()[0])
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = self._offset - pending + error.start
            expected = "expected a JSON list"
            if self._offset == 0 and data.startswith(GZIP_START):
                expected = "it is packed with gzip, so let its name end in .json.gz or .jsonl.gz"
            raise DataError(
                f"{self.path} is not UTF-8 text ({error.reason} at byte {place}); {expected}"
            ) from error
        if self._offset == 0:
            more = more.removeprefix("\ufeff")  # the mark that some editors begin a file with
        self._line += self.text.count("\n", 0, self.position)
        self.text, self.position = self.text[self.position :] + more, 0
        self._offset += len(data)
        self._advance(len(data))
        return bool(data)

    def next_character(self) -> str:
        """Go to the next character that is no white space and return it; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.extend():
                return ""

    def value(self) -> ReadRecord:
        """Read the JSON value that begins here. Raises DataError."""
        while True:
            try:
                record, end = _JSON.raw_decode(self.text, self.position)
            except JSONDecodeError as error:
                cut = error.pos >= len(self.text) - CUT_CHARACTERS or error.msg.startswith("Unterminated")
                problem = self.broken(error.msg, error.pos)  # before the text moves
                if cut and self.extend():
                    continue
                raise problem from error
            except RecursionError as error:
                raise self.broken("nested too deeply", self.position) from error
            if end == len(self.text) and self.extend():
                continue  # a number may go on
            text = self.text[self.position : end]
            self.position = end
            return ReadRecord(text, record)

    def broken(self, message: str, position: int, *, comma: bool = False) -> DataError:
        """Say what is not valid, and where; a comma too many, which is the commonest slip, by name."""
        line = self._line + self.text.count("\n", 0, position)
        expected = "expected a list of records"
        before = self.text.rfind(",", 0, position + 1)
        if before >= 0 and _COMMA_AT_END.match(self.text, before):
            comma = comma or not self.text[before + 1 : position].strip()
        if comma:
            expected = "remove the comma in front of the closing bracket"
        elif not self._offset:
            expected = "the file is empty; expected a list of records"
        return DataError(f"{self.path} is not valid JSON ({message}, line {line}); {expected}")


def _read_list(path: Path, advance: Advance) -> Iterator[ReadRecord]:
    """Yield the elements of a JSON list. Raises DataError."""
    with _open_bytes(path, advance) as (file, told):
        window = _Window(file, path, told)
        if window.next_character() != "[":
            raise _not_a_list(window)
        window.position += 1
        if window.next_character() == "]":
            window.position += 1
        else:
            yield from _elements(window)
        if window.next_character():
            raise window.broken("Extra data", window.position)


def _elements(window: _Window) -> Iterator[ReadRecord]:
    while True:
        if window.next_character() == "]":
            raise window.broken("Expecting value", window.position, comma=True)
        yield window.value()
        following = window.next_character()
        if following not in (",", "]"):
            raise window.broken("Expecting ',' delimiter", window.position)
        window.position += 1
        if following == "]":
            return


def _not_a_list(window: _Window) -> DataError:
    kind = kind_of(window.value().record)
    if window.next_character() == "{":
        return DataError(
            f"{window.path} holds one JSON {kind} after the other; expected a list of records. "
            "If each line is one record, let its name end in .jsonl"
        )
    if window.next_character():
        return window.broken("Extra data", window.position)
    return DataError(f"{window.path} holds a JSON {kind}; expected a list of records")


# ---- JSON lines ----


def _read_lines(path: Path, advance: Advance) -> Iterator[ReadRecord]:
    """Yield one record a line; a line that is not JSON is a row with a fault, an empty one is skipped."""
    first = True
    with _open_bytes(path, advance) as (file, told):
        for number, line in enumerate(file, start=1):
            told(len(line))
            if number == 1 and line.startswith(GZIP_START):
                raise DataError(f"{path} is packed with gzip; let its name end in .jsonl.gz")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if first and text.startswith("["):
                    raise DataError(
                        f"{path} is a JSON list, and its name promises one record a line; let it end in .json"
                        + ".gz" * (path.suffix == ".gz")
                    )
                first = first and not text
                if text:
                    yield ReadRecord(text, json.loads(text))
            except UnicodeDecodeError as error:
                yield ReadRecord("null", None, f"line {number} is not UTF-8 text ({error.reason})")
            except (JSONDecodeError, RecursionError) as error:
                message = getattr(error, "msg", "nested too deeply")
                yield ReadRecord("null", None, f"line {number} is not valid JSON ({message})")


# ---- parquet ----


def _read_parquet(path: Path, advance: Advance) -> Iterator[ReadRecord]:
    """Yield the rows of a parquet file with columns `conversations` and, optionally, `image` and others."""
    size = path.stat().st_size
    for record, share in parquet_records(path):
        advance(int(size * share))
        if _holds_bytes(record.get("image")):
            raise DataError(
                f"{path} holds the bytes of its images; read it with --streaming True, or store file names"
            )
        if _holds_bytes(record.get("video")):
            raise DataError(f"{path} holds the bytes of its videos; store the names of files")
        yield ReadRecord(json.dumps(record, ensure_ascii=False, default=str), record)


def parquet_records(path: Path | str, filesystem: object = None) -> Iterator[tuple[Record, float]]:
    """Yield (record, its share of the file). Raises DataError when it is not a parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path, filesystem=filesystem)
        rows = max(table.metadata.num_rows, 1)
        for batch in table.iter_batches(batch_size=PARQUET_ROWS):
            for row in batch.to_pylist():
                yield _clean(row), 1 / rows
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}") from error


def _clean(row: Record) -> Record:
    """Drop empty columns, which parquet has in every row, and read a dialog that is stored as JSON text."""
    record = {name: value for name, value in row.items() if value is not None}
    turns = record.get("conversations")
    if isinstance(turns, str):
        with contextlib.suppress(JSONDecodeError):  # else reported as what it is, a text and no list
            record["conversations"] = json.loads(turns)
    return record


def _holds_bytes(image: object) -> bool:
    one = image[0] if isinstance(image, list) and image else image
    return isinstance(one, (bytes, dict))
