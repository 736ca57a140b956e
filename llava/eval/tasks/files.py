"""Reading the published files of benchmarks: JSON, JSON lines, TSV, parquet; what is broken is named."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from llava.eval.tasks.base import PackedImage, Record
from llava.utils import UserError, shortened

# Names that a row must have, and what their values may be.
Fields: TypeAlias = Mapping[str, type | tuple[type, ...]]
ID: tuple[type, ...] = (int, str)
TEXT: tuple[type, ...] = (str,)

# What pandas takes for a missing value when it reads a table, as the reference's programs do. A text that
# says so is lost to them; here it is lost as well, and counted.
PANDAS_MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"]
    + ["NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)


def read_text(path: Path) -> str:
    """Return a file's text without a byte-order mark; raises UserError for a folder and what is no UTF-8."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a file (name the file in it)")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}; "
            "expected the published file as it was downloaded"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def check_rows(rows: object, fields: Fields, where: str | Path) -> list[Record]:
    """Return a list of objects that have all `fields`; raises UserError for the first that has not."""
    if not isinstance(rows, list):
        raise UserError(f"{where} holds {_kind(rows)}; expected a list of objects")
    for number, row in enumerate(rows, start=1):
        check_row(row, fields, f"{where}, row {number}")
    return rows


def check_row(row: object, fields: Fields, where: str) -> Record:
    """Return an object that has all `fields`; raises UserError that names the one it lacks."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is {_kind(row)}; expected an object")
    for name, kind in fields.items():
        if name not in row:
            raise UserError(
                f"{where} has no {name!r}; it has {shortened(', '.join(map(str, row)) or 'nothing', 120)}"
            )
        if not isinstance(row[name], kind) or (isinstance(row[name], bool) and bool not in _as_tuple(kind)):
            wanted = " or ".join(one.__name__ for one in _as_tuple(kind))
            raise UserError(f"{where}: {name!r} is {_kind(row[name])}; expected {wanted}")
    return row


def read_object(path: Path, fields: Fields) -> Record:
    """Read a JSON file that holds one object with these fields."""
    return check_row(_parse(read_text(path), path), fields, str(path))


def read_list(path: Path, fields: Fields) -> list[Record]:
    """Read a JSON file that holds a list of objects with these fields."""
    return check_rows(_parse(read_text(path), path), fields, path)


def read_listed(path: Path, name: str, fields: Fields) -> list[Record]:
    """Read a JSON file that holds one object, with a list of objects with these fields under `name`."""
    return check_rows(read_object(path, {name: list})[name], fields, path)


def read_by_id(path: Path, fields: Fields) -> dict[str, Record]:
    """Read a JSON file that holds id -> object, as GQA and ScienceQA publish their questions."""
    table = read_object(path, {})
    return {key: check_row(row, fields, f"{path}, {key!r}") for key, row in table.items()}


def read_lines(path: Path, fields: Fields) -> list[Record]:
    """Read JSON lines; empty lines are passed over. All broken lines are counted, the first one is named."""
    text = read_text(path)
    if text.lstrip().startswith("["):  # a list in place of lines is as clear
        return check_rows(_parse(text, path), fields, path)
    rows: list[Record] = []
    broken: list[int] = []
    lines = text.split("\n")  # not splitlines: a text may hold U+2028
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            broken.append(number)
            continue
        rows.append(check_row(row, fields, f"{path}, line {number}"))
    if broken:
        half = " (the last one, which breaks off)" if broken == [len(lines)] else ""
        raise UserError(
            f"{path}: {len(broken)} of {len(broken) + len(rows)} lines are no JSON, the first is line "
            f"{broken[0]}{half}: {shortened(lines[broken[0] - 1].strip(), 80)!r}; fetch the file once more"
        )
    return rows


def read_tsv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a table with tabs between its columns, all of it as text; raises UserError for lacking columns."""
    import pyarrow.csv  # takes a while, and most files are no tables

    head = read_head(path)
    lacking = [one for one in columns if one not in head]
    if lacking:
        raise UserError(
            f"{path} has no column {', '.join(lacking)}; it has {shortened(', '.join(head), 200)}"
        )
    size = min(max(path.stat().st_size + 1, 1024), 2**31 - 1)  # one block: a row with an image may be large
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=size),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={one: pyarrow.string() for one in head}, strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is no whole table: {error}; fetch the file once more") from error
    return table.to_pylist()


def read_head(path: Path) -> list[str]:
    """Return the names of a table's columns."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a table (name the file in it)")
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.readline().rstrip("\r\n").split("\t")
    if len(set(head)) < len(head):
        raise UserError(f"{path} names a column twice: {shortened(', '.join(head), 200)}")
    return head


def read_parquet(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[Record]:
    """Yield the rows of parquet files, these columns of them; raises UserError for a broken file."""
    import pyarrow.parquet  # takes a while, and most files are no tables

    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                lacking = [one for one in columns if one not in file.schema_arrow.names]
                if lacking:
                    raise UserError(
                        f"{path} has no column {', '.join(lacking)}; it has "
                        f"{shortened(', '.join(file.schema_arrow.names), 200)}"
                    )
                for batch in file.iter_batches(batch_size=64, columns=list(columns)):
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} is no readable parquet file: {error}") from error


def parquet_files(place: Path, pattern: str) -> list[Path]:
    """Return a parquet file, or those of a folder that match; raises UserError where there are none."""
    found = [place] if place.is_file() else sorted(place.glob(pattern))
    if not found:
        raise UserError(f"{place} holds no file {pattern}; expected the published parquet files")
    return found


def packed_image(value: object, name: str) -> PackedImage:
    """Return the image of a table's cell: base64 text, bytes, or a parquet image (`bytes` and `path`)."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, str):
        try:
            value = base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{name} is no base64 text: {error}") from error
    if not isinstance(value, bytes) or not value:
        raise UserError(f"{name} is {_kind(value)}; expected an encoded image")
    return PackedImage(value, name)


def _parse(text: str, path: Path) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; fetch the file once more") from error
    except RecursionError as error:
        raise UserError(f"{path} is no JSON that a benchmark uses: it is nested too deeply") from error


def _as_tuple(kind: type | tuple[type, ...]) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def _kind(value: object) -> str:
    """Say what a JSON value is."""
    if value is None:
        return "null"
    if isinstance(value, str | int | float):
        return shortened(repr(value), 60)
    return {"list": "a list", "dict": "an object", "bytes": "empty"}.get(
        type(value).__name__, type(value).__name__
    )
