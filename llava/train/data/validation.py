"""Checks of one record for the data doctor: turns, images, length, and whether it trains anything."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.mm_utils import ImageError, load_image
from llava.train.data.records import Fault, Record, find_faults, image_paths, stray_marks
from llava.train.data.table import RecordTable, load_records
from llava.utils import UserError

Size = tuple[int, int]  # (width, height)
NO_LIMIT = 1_000_000  # tokens


@dataclass(frozen=True)
class CheckSettings:
    """What is checked and against which model; the fields are named after the flags of training."""

    data_path: str
    image_folder: str | None = None
    data_cache_dir: str | None = None
    model_name_or_path: str | None = None  # without one, tokens are not counted
    version: str = "v1"
    model_max_length: int = 2048
    vision_tower: str | None = None  # without one, an image counts as one token
    image_aspect_ratio: str = "square"
    image_grid_pinpoints: str | None = None  # by default the model's
    mm_patch_merge_type: str = "flat"
    mm_vision_select_feature: str = "patch"
    mm_use_im_start_end: bool = False
    label_masks: str | None = None  # by default as training chooses


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
        self.tokens = TokenChecker(settings) if settings.model_name_or_path else None

    def check(self, index: int) -> Iterator[Finding]:
        """Yield every fault of a record, and notes about it."""
        record = self.records[index]
        unreadable = self.records.fault(index) if record is None else ""
        if unreadable:
            yield Finding(index, Fault("not_json", unreadable))
            return
        faults = list(find_faults(record))
        turns_are_fine = not faults
        if not any(fault.kind in ("not_an_object", "bad_image_name") for fault in faults):
            images, sizes = self._check_images(index, image_paths(record))
            faults.extend(images)
            turns_are_fine = turns_are_fine and not images
        if turns_are_fine:
            faults.extend(_empty_turns(record["conversations"]))
            yield from (Finding(index, note, is_note=True) for note in _notes(record))
        if self.tokens is not None and not faults:
            faults.extend(self.tokens.check(record, sizes))
        yield from (Finding(index, fault) for fault in faults)

    def _check_images(self, index: int, names: Sequence[str]) -> tuple[list[Fault], list[Size]]:
        """Decode the images of a record; returns faults and sizes."""
        folder = self.records.image_folder(index)
        faults, sizes = [], []
        for name in names:
            try:
                sizes.append(load_image(os.path.join(folder or "", name)).size)
            except ImageError as error:
                missing = isinstance(error.__cause__, FileNotFoundError)
                faults.append(Fault("image_missing" if missing else "image_corrupt", str(error)))
        return faults, sizes


def open_all(settings: CheckSettings) -> RecordTable:
    """Open every record once, also those that a mixture's weights leave out. Raises DataError."""
    return load_records(
        settings.data_path,
        image_folder=settings.image_folder,
        cache_dir=settings.data_cache_dir,
        keep_faulty=True,
        whole=True,
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
    if stray_marks(record):
        yield Fault(
            "stray_mark", f"it has no image, but {DEFAULT_IMAGE_TOKEN} in its text, which is read as text"
        )


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of training without its warnings: what it warns about is a finding here."""
    warner = logging.getLogger("llava.train")
    level = warner.level
    warner.setLevel(logging.ERROR)
    try:
        return function(*arguments)
    finally:
        warner.setLevel(level)


class TokenChecker:
    """Counts the tokens of a record as training does, images included."""

    def __init__(self, settings: CheckSettings) -> None:
        """Load tokenizer and template. Raises UserError."""
        from llava import conversation
        from llava.train.data.samples import SampleMaker
        from llava.train.labels.preprocess import choose_label_masks
        from llava.train.train import load_training_tokenizer

        self.limit = settings.model_max_length
        tokenizer, template = load_training_tokenizer(
            settings.model_name_or_path or "", settings.version, model_max_length=NO_LIMIT
        )
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        self.tokenizer = tokenizer
        conv = conversation.conv_templates[template]
        with_images = SimpleNamespace(
            is_multimodal=True,
            mm_use_im_start_end=settings.mm_use_im_start_end,
            label_masks=_quietly(choose_label_masks, settings.label_masks, conv, tokenizer),
        )
        self.maker = SampleMaker(tokenizer, with_images, conv)
        self.image_tokens = ImageTokens(settings) if settings.vision_tower else None

    def check(self, record: Record, sizes: Sequence[Size]) -> Iterator[Fault]:
        """Yield a fault for a record that is too long or trains nothing. sizes: of its images."""
        try:
            sample = _quietly(self.maker.encode, record)
            counts = [1 if self.image_tokens is None else self.image_tokens.count(size) for size in sizes]
            length = len(sample["input_ids"]) - len(counts) + sum(counts)
            if length > self.limit:
                yield Fault(
                    "too_long",
                    f"it has {length} tokens, {sum(counts)} of them for images; "
                    f"what is beyond {self.limit} is cut off",
                )
            elif bool((sample["labels"] == IGNORE_INDEX).all()):
                yield Fault(
                    "nothing_supervised", "no token of it is trained on; its text confuses the template"
                )
        except UserError as error:  # the template cannot hold these turns
            yield Fault("template", str(error))


class ImageTokens:
    """How many tokens an image becomes, by the code that joins the features of its tiles."""

    def __init__(self, settings: CheckSettings) -> None:
        """Read the sizes of the tower, and the tile grids of the model. Raises UserError."""
        from llava.model.checkpoints.files import read_config
        from llava.model.multimodal.config import MultimodalConfig
        from llava.model.multimodal_encoder.registry import describe_tower
        from llava.train.data.samples import choose_tile_grids

        fields = SimpleNamespace(
            mm_vision_tower=settings.vision_tower,
            mm_vision_select_feature=settings.mm_vision_select_feature,
        )
        tower = describe_tower(MultimodalConfig.of(fields))
        self.edge, self.side, self.extra = tower.tile_size, tower.num_patches_per_side, tower.extra_tokens
        model = read_config(settings.model_name_or_path or "")
        grids = choose_tile_grids(
            settings.image_grid_pinpoints,
            model.get("image_grid_pinpoints"),
            aspect_ratio=settings.image_aspect_ratio,
            tile_edge=self.edge,
        )
        self.settings = MultimodalConfig.of(
            SimpleNamespace(
                image_grid_pinpoints=grids,
                image_aspect_ratio=settings.image_aspect_ratio,
                mm_patch_merge_type=settings.mm_patch_merge_type,
            )
        )

    def count(self, size: Size) -> int:
        """Return the tokens of an image of `size` (width, height)."""
        from llava.model.multimodal.splice import count_features

        return count_features(
            size,
            settings=self.settings,
            patches_per_side=self.side,
            extra=self.extra,
            tile_size=self.edge,
        )
