"""What a training record is, and what can be wrong with one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.utils import UserError

SAMPLE_KEY = "sample_name"  # of a sample: its index, or its name in a stream

# {"id", "image": path or list of paths (optional), "conversations": [{"from", "value"}]}
Record = dict[str, Any]

SPEAKERS = ("human", "gpt")


class DataError(UserError):
    """A training record, or a file of them, is not what training needs."""


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


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a record: a fixed word for it, and a sentence."""

    kind: str
    reason: str


def find_fault(record: object) -> str:
    """Say what is wrong with a record, or return "" when nothing is."""
    for fault in find_faults(record):
        return fault.reason
    return ""


def find_faults(record: object) -> Iterator[Fault]:
    """Yield everything that keeps a record from being trained on, in the order of the record."""
    if not isinstance(record, dict):
        yield Fault(
            "not_an_object", f"it is a JSON {kind_of(record)}; expected an object with 'conversations'"
        )
        return
    turns = record.get("conversations")
    if turns is None:
        yield Fault(
            "no_conversations", "it has no 'conversations'; expected a list of turns {'from', 'value'}"
        )
    elif not isinstance(turns, list) or not turns:
        found = "empty" if turns == [] else f"a JSON {kind_of(turns)}"
        yield Fault("no_conversations", f"'conversations' is {found}; expected a list of turns")
    readable = isinstance(turns, list) and bool(turns)
    for fault in _turn_faults(turns) if readable else ():  # type: ignore[arg-type]
        readable = False
        yield fault
    yield from _image_faults(record, turns if readable else None)  # type: ignore[arg-type]


def _turn_faults(turns: Sequence[object]) -> Iterator[Fault]:
    before = None  # who spoke the turn before, if that can be told
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            before = None
            reason = f"turn {number} is {turn!r:.80}; expected an object with 'from' and 'value'"
            yield Fault("bad_turn", reason)
            continue
        speaker = turn["from"]
        if speaker not in SPEAKERS:
            yield Fault("role", f"turn {number} is from {speaker!r}; expected 'human' or 'gpt'")
            speaker = None
        if not isinstance(turn["value"], str):
            reason = f"the value of turn {number} is a JSON {kind_of(turn['value'])}; expected text"
            yield Fault("not_text", reason)
        elif not _has_characters_only(turn["value"]):
            reason = f"the value of turn {number} holds half a character (a lone surrogate such as \\ud83d)"
            yield Fault("not_text", reason)
        if speaker is not None and speaker == before:
            reason = f"turns {number - 1} and {number} are both from {speaker!r}; they must alternate"
            yield Fault("role_order", reason)
        before = speaker


def _has_characters_only(text: str) -> bool:
    """Tell whether a text can be written; JSON may hold one half of a pair that stands for a character."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _image_faults(record: Record, turns: Sequence[Record] | None) -> Iterator[Fault]:
    """Yield faults of `image`; its marks are counted when the turns are without fault."""
    names = image_paths(record)
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        reason = f"'image' is {record['image']!r:.80}; expected a file name or a list of file names"
        yield Fault("bad_image_name", reason)
        return
    if not names or turns is None:
        return  # without an image, a text may talk about <image>; `stray_marks` finds those
    first = 0 if turns[0]["from"] == "human" else 1  # a leading answer is dropped
    counts = [turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns[first:]]
    # with one image, all marks of a turn become one mark in front of it
    marks = sum(counts) if len(names) > 1 else sum(count > 0 for count in counts)
    if marks != len(names):
        reason = (
            f"it has {len(names)} image(s) but {marks} {DEFAULT_IMAGE_TOKEN} mark(s) in its turns; "
            "expected one mark for each image"
        )
        yield Fault("image_count", reason)


def stray_marks(record: Record) -> bool:
    """Tell whether a faultless record without an image holds the image mark, which is read as text then."""
    return not has_images(record) and any(
        DEFAULT_IMAGE_TOKEN in turn["value"] for turn in record["conversations"]
    )


def kind_of(value: object) -> str:
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
