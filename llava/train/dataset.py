"""Samples and batches for training: one record becomes ids, labels and pixels when it is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX
from llava.conversation import Conversation
from llava.mm_utils import ImageError, load_image, process_images
from llava.train.preprocess import preprocess, preprocess_multimodal
from llava.train.records import DataError, Record, has_images, image_paths, load_records, name_record
from llava.utils import UserError

logger = logging.getLogger(__name__)

Sample = dict[
    str, Any
]  # input_ids (length,), labels (length,), image (see below), image_sizes [(width, height)]

# What an image adds to a sample's length when samples are grouped; the reference's number.
IMAGE_LENGTH = 128


class LazySupervisedDataset(Dataset[Sample]):
    """Records of a JSON list, prepared one by one when they are read.

    data_args: image_folder, image_processor, image_aspect_ratio (and image_grid_pinpoints for anyres),
    is_multimodal, mm_use_im_start_end. conv: the template; by default conversation.default_conversation at
    the time of reading.
    """

    def __init__(
        self, data_path: str, tokenizer: Any, data_args: Any, conv: Conversation | None = None
    ) -> None:
        """Read and check all records. Raises DataError."""
        super().__init__()
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.conv = conv
        self.list_data_dict: list[Record] = load_records(data_path)
        self._reported: set[int] = set()  # samples without labels that the log has named

    def __len__(self) -> int:
        return len(self.list_data_dict)

    @cached_property
    def _word_counts(self) -> list[int]:
        return [
            sum(len(turn["value"].split()) for turn in record["conversations"])
            for record in self.list_data_dict
        ]

    @cached_property
    def lengths(self) -> list[int]:
        """Rough length of each sample: words, and 128 for its image."""
        return [
            words + (IMAGE_LENGTH if has_images(record) else 0)
            for words, record in zip(self._word_counts, self.list_data_dict, strict=True)
        ]

    @cached_property
    def modality_lengths(self) -> list[int]:
        """Words of each sample, negative when it has no image."""
        return [
            words if has_images(record) else -words
            for words, record in zip(self._word_counts, self.list_data_dict, strict=True)
        ]

    def __getitem__(self, i: int) -> Sample:
        """Prepare sample `i`: input_ids and labels (length,), and `image`.

        image: (3, H, W), with anyres (tiles, 3, H, W), and a list of such tensors for a record with several
        images; zeros for a text in multimodal training. Raises DataError naming the record.
        """
        record = self.list_data_dict[i]
        try:
            sample = self._prepare(record)
        except UserError as error:
            raise DataError(f"{name_record(i, record)}: {error}") from error
        labels = sample["labels"][: self.tokenizer.model_max_length]
        if i not in self._reported and not bool((labels != IGNORE_INDEX).any()):
            self._reported.add(i)
            logger.warning(
                "%s has nothing that is trained on (an empty or cut answer, or separators inside the text)",
                name_record(i, record),
            )
        return sample

    def _prepare(self, record: Record) -> Sample:
        paths = image_paths(record)
        turns = [record["conversations"]]
        if paths:
            turns = preprocess_multimodal(  # type: ignore[assignment]
                turns, self.data_args, keep_places=len(paths) > 1, conv=self.conv
            )
        encoded = preprocess(turns, self.tokenizer, has_image=bool(paths), conv=self.conv)
        sample: Sample = {"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}
        if paths:
            self._add_images(sample, paths)
        elif self.data_args.is_multimodal:
            # a text also goes through the tower and the projector, so that all ranks do the same work
            size = self._input_size()
            tiles = (1,) if self._anyres else ()
            sample["image"] = torch.zeros(*tiles, 3, *size)
            if self._anyres:
                sample["image_sizes"] = [(size[1], size[0])]
        return sample

    def _add_images(self, sample: Sample, paths: Sequence[str]) -> None:
        folder = self.data_args.image_folder
        if folder is None:
            raise DataError(f"it has the image {paths[0]!r}, but --image_folder is missing")
        images = [load_image(os.path.join(folder, path)) for path in paths]
        values = []
        for path, image in zip(paths, images, strict=True):
            try:
                values.append(process_images([image], self.data_args.image_processor, self.data_args)[0])
            except (ValueError, OSError, MemoryError) as error:
                raise ImageError(f"the image {path!r} ({image.width}x{image.height}): {error}") from error
        sample["image"] = values[0] if len(values) == 1 else values
        if self._anyres:
            sample["image_sizes"] = [image.size for image in images]

    @property
    def _anyres(self) -> bool:
        return getattr(self.data_args, "image_aspect_ratio", None) == "anyres"

    def _input_size(self) -> tuple[int, int]:
        """Return height and width of what the image processor makes."""
        processor = self.data_args.image_processor
        size = getattr(processor, "crop_size", None) or processor.size
        return size["height"], size["width"]


@dataclass
class DataCollatorForSupervisedDataset:
    """Pads samples to a batch."""

    tokenizer: Any

    def __call__(self, instances: Sequence[Sample]) -> dict[str, Any]:
        """Pad on the right and cut at the tokenizer's length.

        Returns input_ids, labels, attention_mask (n, length), and for images in the order of their marks
        `images`: a tensor (n_images, 3, H, W), or a list when shapes differ; with anyres also image_sizes.
        """
        limit = self.tokenizer.model_max_length
        pad = self.tokenizer.pad_token_id
        input_ids = pad_sequence([one["input_ids"] for one in instances], batch_first=True, padding_value=pad)
        labels = pad_sequence(
            [one["labels"] for one in instances], batch_first=True, padding_value=IGNORE_INDEX
        )
        input_ids = input_ids[:, :limit]
        batch: dict[str, Any] = {
            "input_ids": input_ids,
            "labels": labels[:, :limit],
            "attention_mask": input_ids.ne(pad),
        }
        if "image" in instances[0]:
            images = [tensor for one in instances for tensor in _as_list(one["image"])]
            same = all(tensor.shape == images[0].shape for tensor in images)
            batch["images"] = torch.stack(images) if same else images
        if "image_sizes" in instances[0]:
            batch["image_sizes"] = [size for one in instances for size in one["image_sizes"]]
        return batch


def _as_list(image: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return image if isinstance(image, list) else [image]


def make_supervised_data_module(
    tokenizer: Any, data_args: Any, conv: Conversation | None = None
) -> dict[str, Any]:
    """Build the data arguments of a Trainer: train_dataset, eval_dataset (None), data_collator."""
    return {
        "train_dataset": LazySupervisedDataset(data_args.data_path, tokenizer, data_args, conv),
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer=tokenizer),
    }
