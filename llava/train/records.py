"""What a training record is, and what can be wrong with one."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.utils import UserError

SAMPLE_KEY = "sample_name"  # of a sample: its index, or its name in a stream

# {"id", "image": path or list of paths (optional), "conversations": [{"from", "value"}]}; in the place of
# "image" also "video": path of a file or folder, or the list of its frames
Record = dict[str, Any]

SPEAKERS = ("human", "gpt")
RECORD_KEYS = ("id", "image", "video", "conversations")
# Keys under which other formats keep images and other media, without case, separators and digits at the end.
IMAGE_LIKE = (
    *("image", "images", "img", "imgs", "imagepath", "imagepaths", "imagefile", "imagefiles", "imagename"),
    *("imagenames", "imageurl", "imageurls", "imglist", "imagelist", "imgpath", "imgpaths", "picture"),
    *("pictures", "photo", "photos", "pic", "pixelvalues"),
)
VIDEO_LIKE = ("video", "videos", "videopath", "videopaths", "videofile", "videofiles", "videoname")
OTHER_MEDIA = ("audio", "audios", "audiopath")
CLOSE = 0.8  # of a misspelled key to the right one
NAME_CHARACTERS = 80  # of an id in a message
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:\w+/", re.ASCII)


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


def has_video(record: Record) -> bool:
    """Tell whether a record comes with a video; null, as tables have it, and an empty list are none."""
    return record.get("video") not in (None, [])


def has_media(record: Record) -> bool:
    """Tell whether a record comes with an image or a video."""
    return has_images(record) or has_video(record)


def media_names(record: Record) -> list[str]:
    """Return the names of a record's images, or of its video: one, or those of its frames."""
    if not has_video(record):
        return image_paths(record)
    video = record["video"]
    return list(video) if isinstance(video, list) else [video]


def turns_of(record: Record) -> list[dict[str, Any]]:
    """Return the turns as they are trained: a video's place, which may be <video>, is an image token."""
    turns: list[dict[str, Any]] = record["conversations"]
    if not has_video(record):
        return turns
    return [
        {**turn, "value": turn["value"].replace(DEFAULT_VIDEO_TOKEN, DEFAULT_IMAGE_TOKEN)} for turn in turns
    ]


def name_record(index: int, record: object) -> str:
    """Name a record for a message: its place in the file and, if it has one, its id."""
    own = record.get("id") if isinstance(record, dict) else None
    return f"record {index}" + (f" (id {_brief(own)})" if own is not None else "")


def _brief(value: object) -> str:
    """Return a value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= NAME_CHARACTERS else f"{text[:NAME_CHARACTERS]}..."


def unread_media_key(record: Record) -> str | None:
    """Return a key that resembles `image` or `video` but is not read: the record trains without its media.

    A record with an image may have keys of its own about it; only other media are named then.
    """
    for key, value in record.items():
        if key in RECORD_KEYS or not isinstance(key, str) or not _may_be_media(value):
            continue
        plain = re.sub(r"[^a-z]", "", key.lower())
        if plain in OTHER_MEDIA or (plain in VIDEO_LIKE and not has_video(record)):
            return key
        alike = difflib.SequenceMatcher(None, plain, "image").ratio() >= CLOSE
        near = alike and abs(len(plain) - len("image")) <= 1
        if not has_media(record) and (plain in IMAGE_LIKE or near):
            return key
    return None


def _may_be_media(value: object) -> bool:
    one = value[0] if isinstance(value, list) and value else value
    return isinstance(one, (str, dict, bytes)) and bool(one)


def explain_unread_key(key: str) -> str:
    """Say what is expected in the place of a key that `unread_media_key` has found."""
    plain = re.sub(r"[^a-z]", "", key.lower())
    if plain in OTHER_MEDIA:
        return f"{key!r} is not read, training takes images and videos alone"
    if plain in VIDEO_LIKE:
        return f"{key!r} is not read, so it trains without; expected 'video', a file, a folder or its frames"
    return f"{key!r} is not read, so it trains as text; expected 'image', a file name or a list of them"


def leaving_name(record: Record) -> str | None:
    """Return the first name of its media that is absolute or climbs out of the folder it is relative to."""
    for name in media_names(record):
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
            return name
    return None


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
        near = [key for key in record if key in ("messages", "conversation", "dialog", "turns")]
        hint = f" (it has {near[0]!r}, which is not read)" if near else ""
        if "path" in record or "json_path" in record:
            hint = " (it looks like an entry of a mixture, which is a .yaml file)"
        reason = f"it has no 'conversations'{hint}; expected a list of turns {{'from', 'value'}}"
        yield Fault("no_conversations", reason)
    elif not isinstance(turns, list) or not turns:
        found = "empty" if turns == [] else f"a JSON {kind_of(turns)}"
        yield Fault("no_conversations", f"'conversations' is {found}; expected a list of turns")
    readable = isinstance(turns, list) and bool(turns)
    for fault in _turn_faults(turns) if readable else ():  # type: ignore[arg-type]
        readable = False
        yield fault
    if has_video(record):
        yield from _video_faults(record, readable)
    else:
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
    """Yield faults of `image`; its image tokens are counted when the turns are without fault."""
    names = image_paths(record)
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        empty = [name for name in names if name is None or (isinstance(name, float) and math.isnan(name))]
        hint = ", or no 'image' for a record of text alone" if empty else ""
        found = _brief(record["image"])
        yield Fault(
            "bad_image_name", f"'image' is {found}; expected a file name or a list of file names{hint}"
        )
        return
    address = next((name for name in names if _ADDRESS.match(name)), None)
    if address is not None:
        yield Fault(
            "image_address",
            f"'image' is the address {_brief(address)}; training reads files: download it, and name the file",
        )
        return
    if not names or turns is None:
        return  # without an image, a text may talk about <image>; `stray_image_tokens` finds those
    counts = _token_counts(turns)
    # with one image, all image tokens of a turn become one in front of it
    n_tokens = sum(counts) if len(names) > 1 else sum(count > 0 for count in counts)
    if n_tokens != len(names):
        reason = (
            f"it has {len(names)} image(s) but {n_tokens} {DEFAULT_IMAGE_TOKEN} token(s) in its turns; "
            "expected one for each image"
        )
        yield Fault("image_count", reason)


def _token_counts(turns: Sequence[Record]) -> list[int]:
    """Count the image tokens of each turn; a leading answer is dropped."""
    first = 0 if turns[0]["from"] == "human" else 1
    return [turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns[first:]]


def _video_faults(record: Record, readable: bool) -> Iterator[Fault]:
    """Yield faults of `video`; readable: its turns are without fault, so that its tokens can be counted."""
    names = media_names(record)
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        found = _brief(record["video"])
        yield Fault(
            "bad_video_name",
            f"'video' is {found}; expected the name of a file or folder, or a list of names of its frames",
        )
        return
    if has_images(record):
        yield Fault(
            "mixed_media", "it has both 'image' and 'video'; expected one of them: make it two records"
        )
        return
    address = next((name for name in names if _ADDRESS.match(name)), None)
    if address is not None:
        yield Fault(
            "video_address",
            f"'video' is the address {_brief(address)}; training reads files: download it, and name the file",
        )
        return
    if not readable:
        return
    places = sum(count > 0 for count in _token_counts(turns_of(record)))  # those of a turn become one
    if places != 1:
        yield Fault(
            "video_count",
            f"it has a video, and {DEFAULT_VIDEO_TOKEN} or {DEFAULT_IMAGE_TOKEN} stands in {places} of its "
            "turns; expected in one",
        )


def stray_image_tokens(record: Record) -> bool:
    """Tell whether a faultless record without media holds the image token, which is read as text then."""
    return not has_media(record) and any(
        DEFAULT_IMAGE_TOKEN in turn["value"] for turn in record["conversations"]
    )


def sample_name(dataset: object, key: object) -> str:
    """Name a sample of a dataset: by its number as the dataset's table of records does, if it has one."""
    name = getattr(getattr(dataset, "list_data_dict", None), "name", None)
    return str(name(key) if isinstance(key, int) and callable(name) else key)


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
