"""The collator: samples become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.train.data.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class DataCollatorForSupervisedDataset:
    """Pads samples to a batch."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, instances: Sequence[Sample]) -> dict[str, Any]:
        """Pad on the right and cut at the tokenizer's length.

        Returns input_ids, labels, attention_mask (n, length), and for images whose tokens are not cut off
        `images`: a tensor (n_images, 3, H, W), or a list when shapes differ; with anyres also image_sizes,
        with a video also `modalities`, "image" or "video" for each.
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
            kept = [_images_left(one["input_ids"][:limit]) for one in instances]
            images = [
                tensor
                for one, count in zip(instances, kept, strict=True)
                for tensor in _as_list(one["image"])[:count]
            ]
            same = all(tensor.shape == images[0].shape for tensor in images)
            batch["images"] = torch.stack(images) if same else images
            if any("modalities" in one for one in instances):
                batch["modalities"] = [
                    word
                    for one, count in zip(instances, kept, strict=True)
                    for word in one.get("modalities", ["image"] * len(_as_list(one["image"])))[:count]
                ]
        if "image_sizes" in instances[0]:
            batch["image_sizes"] = [
                size
                for one, count in zip(instances, kept, strict=True)
                for size in one["image_sizes"][:count]
            ]
        return batch


def _images_left(ids: torch.Tensor) -> int:
    """Count the images of a cut sample: one for each image token left, and a stand-in where none is."""
    return max(1, int((ids == IMAGE_TOKEN_INDEX).sum()))


def _as_list(image: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return image if isinstance(image, list) else [image]
