"""Samples for training: one record becomes ids, labels and pixels when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from llava.conversation import Conversation
from llava.train.data.collator import DataCollatorForSupervisedDataset
from llava.train.data.samples import Sample, SampleMaker
from llava.train.data.skipped import MAX_IN_A_ROW, SkipLog
from llava.train.data.streaming import StreamingDataset
from llava.train.data.table import RecordTable, load_records
from llava.train.plan import DataSettings, adapted
from llava.train.records import DataError
from llava.utils import UserError
from llava.video import Outline

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 8  # whose frames are counted


class LazySupervisedDataset(Dataset[Sample]):
    """Records of --data_path, prepared one by one when they are read.

    data_args: DataSettings, or an object that has some of its fields. conv: the template; by
    default conversation.default_conversation at the time of reading.
    """

    def __init__(
        self,
        data_path: str,
        tokenizer: PreTrainedTokenizerBase,
        data_args: object,
        conv: Conversation | None = None,
    ) -> None:
        """Open and check all records. Raises DataError."""
        super().__init__()
        self.tokenizer = tokenizer
        self.data_args = data_args  # as given: subclasses of other projects have fields of their own there
        self.settings = adapted(DataSettings, data_args)
        self.maker = SampleMaker(tokenizer, self.settings, conv)
        skips = self.settings.skips_bad_samples
        self.skipped = SkipLog() if skips else None
        self.list_data_dict: RecordTable = load_records(
            data_path, cache_dir=self.settings.data_cache_dir, keep_faulty=skips
        )

    def with_settings(self, settings: DataSettings) -> LazySupervisedDataset:
        """Return the same records with other settings of their images."""
        other = copy(self)
        other.data_args = other.settings = settings
        other.maker = SampleMaker(self.tokenizer, settings, self.maker.conv)
        return other

    def split(self, fraction: float) -> tuple[LazySupervisedDataset, LazySupervisedDataset]:
        """Hold out a part of the records, the same in every run; returns the rest and the part."""
        both = copy(self), copy(self)
        for dataset, table in zip(both, self.list_data_dict.split(fraction), strict=True):
            dataset.list_data_dict = table
            vars(dataset).pop("_frames", None)
        return both

    def __len__(self) -> int:
        return len(self.list_data_dict)

    @property
    def lengths(self) -> np.ndarray:
        """Rough length of each sample, words and a number for its image or frames: (records,)."""
        table = self.list_data_dict
        media = np.where(table.with_images, self.settings.image_length, 0)
        if table.with_video.any():
            media[table.with_video] = self.settings.frame_length * self._frames
        return table.words + media

    @cached_property
    def _frames(self) -> np.ndarray:
        """Frames that are taken of each video; 0 where that cannot be told: (videos,)."""
        places = np.flatnonzero(self.list_data_dict.with_video).tolist()
        logger.info("counting the frames of %d videos, none is decoded", len(places))
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            return np.array(list(pool.map(self._count_frames, places)), dtype=np.int64)

    def _count_frames(self, i: int) -> int:
        try:
            found = self.outline(i)
            return len(found.chosen) if found else 0
        except UserError:  # told when the sample is read
            return 0

    def outline(self, i: int) -> Outline | None:
        """Return which frames of a record's video are taken, None for a record without. Raises UserError."""
        return self.maker.outline(self.list_data_dict[i], self.list_data_dict.folders(i))

    def encode(self, i: int) -> Sample:
        """Tokenize and label a record, without its images and frames. Raises UserError."""
        told = self.outline(i) if self.settings.add_time_instruction else None
        return self.maker.encode(self.list_data_dict[i], told)

    @property
    def modality_lengths(self) -> np.ndarray:
        """Words of each sample, at least 1, negative when it has neither image nor video: (records,)."""
        table = self.list_data_dict
        words = np.maximum(table.words, 1)  # the sign of 0 would tell nothing
        return np.where(table.with_images, words, -words)

    def __getitem__(self, i: int) -> Sample:
        """Prepare sample `i`: input_ids and labels (length,), and `image`, see SampleMaker.make.

        Raises DataError naming the record; with on_bad_sample "skip", the next good sample of the same
        modality takes the place of a bad one.
        """
        if self.skipped is None:
            return self._read(i)
        for candidate in self._replacements(i):
            try:
                return self._read(candidate)
            except DataError as error:
                self.skipped.add(self.list_data_dict.name(candidate), str(error))
        raise DataError(
            f"{self.list_data_dict.name(i)} and the samples after it cannot be used, {MAX_IN_A_ROW} in a row "
            "or all there are; see the reasons above, and check --image_folder"
        )

    def _replacements(self, i: int) -> Iterator[int]:
        """Yield `i`, then the indices after it of the same modality, so that batches keep their shape."""
        yield i
        with_images = self.list_data_dict.with_images
        order = (np.arange(1, len(with_images)) + i) % len(with_images)
        same = order[with_images[order] == with_images[i]]
        yield from same[: MAX_IN_A_ROW - 1].tolist()

    def _read(self, i: int) -> Sample:
        record = self.list_data_dict[i]
        try:
            fault = self.list_data_dict.fault(i)
            if fault:
                raise DataError(fault)
            return self.maker.make(record, folders=self.list_data_dict.folders(i))
        except UserError as error:
            raise DataError(f"{self.list_data_dict.name(i)}: {error}") from error


def make_supervised_data_module(
    tokenizer: PreTrainedTokenizerBase, data_args: Any, conv: Conversation | None = None
) -> dict[str, Any]:
    """Build the data arguments of a Trainer: train_dataset, eval_dataset (may be None), data_collator.

    data_args: DataSettings, or an object that has some of its fields.
    """
    settings = adapted(DataSettings, data_args)
    kind = StreamingDataset if settings.streaming else LazySupervisedDataset
    training: Any = kind(data_args.data_path, tokenizer, data_args, conv)
    held_out: Any = None
    if settings.eval_data_path:
        try:
            held_out = LazySupervisedDataset(settings.eval_data_path, tokenizer, data_args, conv)
        except DataError as error:  # which names the flag that data usually comes with
            raise DataError(str(error).replace("--data_path", "--eval_data_path")) from error
        held_out.skipped = training.skipped  # one report of all that was skipped
    elif settings.eval_split:
        training, held_out = training.split(settings.eval_split)
        logger.info("%d records train, %d are held out for evaluation", len(training), len(held_out))
    return {
        "train_dataset": training,
        "eval_dataset": held_out,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer=tokenizer),
    }


def with_settings(data_module: Mapping[str, Any], settings: DataSettings) -> dict[str, Any]:
    """Return what make_supervised_data_module has built, with other settings of the images."""
    datasets = {
        name: data if data is None else data.with_settings(settings)
        for name, data in data_module.items()
        if name in ("train_dataset", "eval_dataset")
    }
    return {**data_module, **datasets}
