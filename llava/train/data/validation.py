"""Checks of one record for the data doctor: turns, images, length, and whether it trains anything."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import find_template, key_for_training
from llava.mm_utils import ImageError, load_image
from llava.train.data.check_settings import CheckSettings, Size
from llava.train.data.image_folders import kind_of_media, media_folder, outside_folder
from llava.train.data.table import RecordTable, load_records
from llava.train.records import (
    Fault,
    Record,
    explain_unread_key,
    find_faults,
    has_media,
    has_video,
    media_names,
    stray_image_tokens,
    turns_of,
    unread_media_key,
)
from llava.utils import UserError, shortened
from llava.video import Outline, Sampling, outline, read_video

if TYPE_CHECKING:
    from llava.train.data.tokens import TokenChecker

_NO_FILES = (
    "not_an_object",
    "bad_image_name",
    "image_address",
    "bad_video_name",
    "video_address",
    "mixed_media",
)
# Characters that nobody sees: controls, zero width (but the joiners that scripts and emoji need), and those
# that turn the direction of writing.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


@dataclass(frozen=True)
class Finding:
    """What is to be said about one record; a note is worth knowing, but the record trains."""

    index: int
    fault: Fault
    is_note: bool = False


def check_range(settings: CheckSettings, start: int, stop: int) -> list[Finding]:
    """Check the records from `start` to below `stop`. Raises UserError for settings that do not work."""
    return [finding for index in range(start, stop) for finding in _checker(settings).check(index)]


@lru_cache(maxsize=1)
def _checker(settings: CheckSettings) -> RecordChecker:
    return RecordChecker(settings)  # once in each process


class RecordChecker:
    """Checks records one by one."""

    def __init__(self, settings: CheckSettings, records: RecordTable | None = None) -> None:
        """Open the records and, if a model is named, its tokenizer. Raises UserError."""
        self.settings = settings
        self.records = open_all(settings) if records is None else records
        self.template = find_template(key_for_training(settings.version), flag="--version")
        self.tokens = _lazy_token_checker(settings) if settings.model_name_or_path else None

    def check(self, index: int) -> Iterator[Finding]:
        """Yield every fault of a record, and notes about it."""
        record = self.records[index]
        unreadable = self.records.fault(index) if record is None else ""
        if unreadable:
            yield Finding(index, Fault("not_json", unreadable))
            return
        faults = list(find_faults(record))
        turns_are_fine = not faults
        if not any(fault.kind in _NO_FILES for fault in faults):
            check = self._check_video if has_video(record) else self._check_images
            media, sizes = check(index, media_names(record))
            faults.extend(media)
            turns_are_fine = turns_are_fine and not media
        if turns_are_fine:
            faults.extend(_empty_turns(record["conversations"]))
            problem = self.template.check_dialog(turns_of(record))
            if problem:
                faults.append(Fault("template", f"{problem} (--version {self.settings.version})"))
            yield from (Finding(index, note, is_note=True) for note in _notes(record))
        if isinstance(record, dict):
            yield from (Finding(index, note, is_note=True) for note in _notes_on_keys(record))
        if self.tokens is not None and not faults:
            faults.extend(self.tokens.check(record, sizes))
        yield from (Finding(index, fault) for fault in faults)

    def _check_images(self, index: int, names: Sequence[str]) -> tuple[list[Fault], list[Size | Outline]]:
        """Decode the images of a record; returns faults and sizes."""
        folder = media_folder(self.records, index)
        faults: list[Fault] = []
        sizes: list[Size | Outline] = []
        for name in names:
            outside = "" if self.settings.allow_images_outside_folder else outside_folder(name, folder)
            if outside:
                faults.append(Fault("image_outside", outside))
                continue
            try:
                sizes.append(load_image(os.path.join(folder or "", name)).size)
            except ImageError as error:
                missing = isinstance(error.__cause__, FileNotFoundError)
                faults.append(Fault("image_missing" if missing else "image_corrupt", str(error)))
        return faults, sizes

    def _check_video(self, index: int, names: Sequence[str]) -> tuple[list[Fault], list[Size | Outline]]:
        """Open the video of a record and decode its first frame, or the images that are its frames.

        Returns faults, and which frames are taken.
        """
        record, folder = self.records[index], media_folder(self.records, index)
        if not self.settings.allow_images_outside_folder:
            found = [outside_folder(name, folder, kind_of_media(record)) for name in names]
            if any(found):
                return [Fault("video_outside", reason) for reason in found if reason], []
        places = [os.path.join(folder or "", name) for name in names]
        video = places if isinstance(record["video"], list) else places[0]
        missing = next((one for one in places if not os.path.exists(one)), None)
        if missing is not None:
            return [
                Fault("video_missing", f"the video {shortened(missing)!r} cannot be read: no such file")
            ], []
        try:
            taken = outline(video, self.settings.sampling)
            first = Sampling(frames=1, always=True)
            read_video(
                video, self.settings.sampling if os.path.isdir(places[0]) or video is places else first
            )
        except UserError as error:
            return [Fault("video_corrupt", str(error))], []
        return [], [taken]


def _lazy_token_checker(settings: CheckSettings) -> TokenChecker:
    """Build the counter of tokens; torch is imported here, where a tokenizer is asked for."""
    from llava.train.data.tokens import TokenChecker

    return TokenChecker(settings)


def open_all(settings: CheckSettings) -> RecordTable:
    """Open every record once, also those that the weights and limits of a mixture leave out, but not those
    that its sampling_strategy does not select. Raises DataError."""
    return load_records(
        settings.data_path,
        image_folder=settings.image_folder,
        video_folder=settings.video_folder,
        cache_dir=settings.data_cache_dir,
        keep_faulty=True,
        every_record=True,
    )


def _empty_turns(turns: Sequence[Record]) -> Iterator[Fault]:
    for number, turn in enumerate(turns):
        if not turn["value"].strip():
            yield Fault("empty_text", f"the text of turn {number}, from {turn['from']!r}, is empty")


def _notes(record: Record) -> Iterator[Fault]:
    turns = record["conversations"]
    if turns[0]["from"] != "human":
        yield Fault("leading_answer", "the first turn is an answer; training drops it")
    if turns[-1]["from"] == "human":
        yield Fault("no_last_answer", "the last question has no answer; it is trained on without one")
    hidden = _hidden_characters(turns)
    if hidden:
        yield Fault("hidden_characters", hidden)
    if has_media(record) and not any(
        DEFAULT_IMAGE_TOKEN in turn["value"] for turn in turns_of(record) if turn["from"] == "human"
    ):
        yield Fault(
            "mark_in_answer",
            f"{DEFAULT_IMAGE_TOKEN} stands only in an answer, so the question is asked without the image",
        )
    if stray_image_tokens(record):
        yield Fault(
            "stray_mark", f"it has no image, but {DEFAULT_IMAGE_TOKEN} in its text, which is read as text"
        )


def _hidden_characters(turns: Sequence[Record]) -> str:
    """Say where the first character stands that nobody sees, and how many there are; "" for none."""
    found = [(number, one) for number, turn in enumerate(turns) for one in _HIDDEN.findall(turn["value"])]
    if not found:
        return ""
    number, one = found[0]
    name = unicodedata.name(one, "a control character").lower()
    return f"turn {number} holds U+{ord(one):04X} ({name}), which nobody sees; {len(found)} such in all"


def _notes_on_keys(record: Record) -> Iterator[Fault]:
    key = unread_media_key(record)
    if key is not None:
        yield Fault("unread_key", explain_unread_key(key))
    for key, value in record.items():
        if key != "image" and _holds_nan(value):
            yield Fault("nan", f"{key!r} holds NaN or Infinity, which JSON does not have; --fix writes null")
            return


def _holds_nan(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_holds_nan(one) for one in inner)


def find_duplicates(records: RecordTable) -> Iterator[tuple[int, Fault]]:
    """Yield (index, note) of each record whose id an earlier one of the same source has."""
    first: dict[tuple[str, str], int] = {}
    for index, own in records.noted("id"):
        earlier = first.setdefault((records.source_of(index), own), index)
        # a record that two entries of a mixture select has no other one beside it
        entries = records.entry_of(earlier) != records.entry_of(index)
        if earlier != index and not (entries and records.place(earlier) == records.place(index)):
            yield index, Fault("duplicate_id", f"its id is also that of {records.name(earlier)}")
