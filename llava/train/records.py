"""Reading training records from disk, and checking them before the first step."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.utils import UserError

logger = logging.getLogger(__name__)

Record = dict[
    str, Any
]  # {"id", "image": path or list of paths (optional), "conversations": [{"from", "value"}]}

SPEAKERS = ("human", "gpt")


class DataError(UserError):
    """A training record, or a file of them, is not what training needs."""


def load_records(path: str | Path) -> list[Record]:
    """Read a JSON list of records and check each one. Raises DataError naming file and record."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            records = json.load(file)
    except OSError as error:
        raise DataError(
            f"cannot read the data file {path}: {error.strerror or error}; check --data_path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); expected a JSON list"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON ({error.msg}, line {error.lineno}); expected a list of records"
        ) from error
    if not isinstance(records, list):
        raise DataError(f"{path} holds a JSON {_kind(records)}; expected a list of records")
    if not records:
        raise DataError(f"{path} holds an empty list; there is nothing to train on")
    for index, record in enumerate(records):
        fault = find_fault(record)
        if fault:
            raise DataError(f"{path}: {name_record(index, record)}: {fault}")
    _report_marks_without_image(path, records)
    return records


def _report_marks_without_image(path: Path, records: Sequence[Record]) -> None:
    """Warn about records without an image whose text holds the image mark; it is read as plain text."""
    found = [
        index
        for index, record in enumerate(records)
        if not has_images(record)
        and any(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in record["conversations"])
    ]
    if found:
        logger.warning(
            "%s: %d record(s) without an image have %s in their text, the first is %s; it is read as text",
            path,
            len(found),
            DEFAULT_IMAGE_TOKEN,
            name_record(found[0], records[found[0]]),
        )


def image_paths(record: Record) -> list[str]:
    """Return the names of a record's images, which `image` holds as one name or as a list."""
    if "image" not in record:
        return []
    image = record["image"]
    return list(image) if isinstance(image, list) else [image]


def has_images(record: Record) -> bool:
    """Tell whether a record comes with at least one image."""
    return record.get("image", []) != []


def name_record(index: int, record: object) -> str:
    """Name a record for a message: its place in the file and, if it has one, its id."""
    own = record.get("id") if isinstance(record, dict) else None
    return f"record {index}" + (f" (id {own!r})" if own is not None else "")


def find_fault(record: object) -> str:
    """Say what is wrong with a record, or return "" when nothing is."""
    if not isinstance(record, dict):
        return f"it is a JSON {_kind(record)}; expected an object with 'conversations'"
    turns = record.get("conversations")
    if turns is None:
        return "it has no 'conversations'; expected a list of turns {'from', 'value'}"
    if not isinstance(turns, list) or not turns:
        found = "empty" if turns == [] else f"a JSON {_kind(turns)}"
        return f"'conversations' is {found}; expected a list of turns"
    return _turn_fault(turns) or _image_fault(record, turns)


def _turn_fault(turns: Sequence[object]) -> str:
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            return f"turn {number} is {turn!r:.80}; expected an object with 'from' and 'value'"
        if turn["from"] not in SPEAKERS:
            return f"turn {number} is from {turn['from']!r}; expected 'human' or 'gpt'"
        if not isinstance(turn["value"], str):
            return f"the value of turn {number} is a JSON {_kind(turn['value'])}; expected text"
        if number and turn["from"] == turns[number - 1]["from"]:  # type: ignore[index]
            return f"turns {number - 1} and {number} are both from {turn['from']!r}; they must alternate"
    return ""


def _image_fault(record: Record, turns: Sequence[Record]) -> str:
    names = image_paths(record)
    if not all(isinstance(name, str) and name for name in names):
        return f"'image' is {record['image']!r:.80}; expected a file name or a list of file names"
    first = 0 if turns[0]["from"] == "human" else 1  # a leading answer is dropped
    if not names:
        return ""  # text that only talks about <image>; `load_records` says so
    counts = [turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns[first:]]
    # with one image, all marks of a turn become one mark in front of it
    marks = sum(counts) if len(names) > 1 else sum(count > 0 for count in counts)
    if marks != len(names):
        return (
            f"it has {len(names)} image(s) but {marks} {DEFAULT_IMAGE_TOKEN} mark(s) in its turns; "
            "expected one mark for each image"
        )
    return ""


def _kind(value: object) -> str:
    """Name a value as JSON does."""
    for kind, name in (
        (dict, "object"),
        (list, "array"),
        (str, "string"),
        (bool, "boolean"),
        ((int, float), "number"),
    ):
        if isinstance(value, kind):  # type: ignore[arg-type]
            return name
    return "null"
