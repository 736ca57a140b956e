"""What stands between a prompt and a model's forward pass: device, context, image features, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.mm_utils import process_images
from llava.model.language_model.registry import position_fields
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.features import count_features
from llava.model.multimodal.splice import SplicedRow, splice_rows
from llava.model.multimodal_projector.registry import projected_tile
from llava.protocols import ImageProcessor
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PromptTooLong(UserError):
    """A prompt that leaves no position for an answer."""


def device_of(model: PreTrainedModel) -> torch.device:
    """Return the device that token ids go to."""
    return model.get_input_embeddings().weight.device


def context_of(model: PreTrainedModel) -> int:
    """Return how many positions the model has."""
    for name in (*position_fields(), "max_sequence_length"):
        if value := getattr(model.config, name, None):
            return int(value)
    return 2048  # the reference's fallback


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> set[int]:
    """Return the ids that end an answer: end tokens, and stop strings that are one added token."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = set(configured) if isinstance(configured, (list, tuple)) else {configured}
    added = tokenizer.get_added_vocab()
    ends |= {tokenizer.eos_token_id, *(added[one] for one in stop if one in added)}
    return {one for one in ends if one is not None}


def check_fits(model: PreTrainedModel, n_positions: int, *, has_images: bool = False) -> None:
    """Raise PromptTooLong for a prompt that leaves no position for an answer, or that the model would cut."""
    limit = context_of(model)
    longest = MultimodalConfig.of(model.config).max_length
    if has_images and longest is not None:  # where the model's own splice cuts a prompt
        limit = min(limit, longest)
    if n_positions >= limit:
        raise PromptTooLong(
            f"the prompt takes at least {n_positions} positions, but this model takes {limit}, answer "
            "included; ask a shorter question, use fewer images or start a new conversation"
        )


def pixels_for(
    model: PreTrainedModel, image_processor: ImageProcessor | None, images: Sequence[Image.Image]
) -> torch.Tensor | list[torch.Tensor]:
    """Return images as the model takes them: (N, [tiles,] 3, H, W), or a list when their tiles differ."""
    if image_processor is None:
        raise TypeError(
            "expected an image processor, got None; a model without a vision tower takes no images"
        )
    pixels = process_images(images, image_processor, model.config)
    device, dtype = device_of(model), model.dtype
    if isinstance(pixels, list):
        return [one.to(device, dtype=dtype) for one in pixels]
    return pixels.to(device, dtype=dtype)


def encode_images(
    model: PreTrainedModel, image_processor: ImageProcessor | None, images: Sequence[Image.Image]
) -> list[torch.Tensor]:
    """Return the projected features (length, C) of each image, tiles merged; the tower runs once."""
    if not images:
        return []
    pixels = pixels_for(model, image_processor, images)
    with torch.inference_mode():
        return model.image_features(pixels, [one.size for one in images])


def image_length(model: PreTrainedModel, size: tuple[int, int]) -> int:
    """Return how many positions an image of `size` (width, height) takes, without encoding it."""
    tower = model.get_vision_tower()
    settings = MultimodalConfig.of(model.config)
    tile = projected_tile(settings, tower.tile_features)
    return count_features(
        size,
        settings=settings,
        patches_per_side=tile.side,
        extra=tile.extra,
        tile_size=tower.tile_size,
    )


def splice_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], features: Sequence[torch.Tensor]
) -> list[SplicedRow]:
    """Embed prompts, image features (of all prompts, in order) in the places of their image tokens."""
    ids = [torch.tensor(one, dtype=torch.long, device=device_of(model)) for one in prompts]
    labels = [torch.full_like(one, IGNORE_INDEX) for one in ids]
    return splice_rows(ids, labels, features, model.get_input_embeddings())
