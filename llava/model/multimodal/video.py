"""Features of one video: its frames pooled, joined and separated as LLaVA-NeXT, OneVision and Video do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from llava.model.multimodal.config import MultimodalConfig
from llava.utils import UserError

MODALITIES = ("image", "video")


def video_places(modalities: Sequence[str] | None, count: int) -> set[int]:
    """Return which of `count` images are videos. Raises UserError for modalities that do not fit them.

    modalities: one word an image, "image" or "video"; without any, and for "image" alone, all are images.
    """
    if modalities is None or all(one == "image" for one in modalities):
        return set()
    unknown = next((one for one in modalities if one not in MODALITIES), None)
    if unknown is not None or len(modalities) != count:
        found = f"{unknown!r}" if unknown is not None else f"{len(modalities)} words for {count} images"
        raise UserError(f"modalities has {found}; expected 'image' or 'video' for each of the images.")
    return {index for index, one in enumerate(modalities) if one == "video"}


def pooled_side(side: int, settings: MultimodalConfig) -> int:
    """Return the patches along an edge of a pooled frame that has `side`."""
    stride = settings.pool_stride
    # only bilinear keeps what is left over at the end of a line
    return math.ceil(side / stride) if settings.pool_mode == "bilinear" else side // stride


def pool_frames(features: torch.Tensor, side: int, settings: MultimodalConfig) -> torch.Tensor:
    """Pool the features (frames, side * side, C) of a video: (frames, P, C)."""
    if not side:
        raise UserError(
            f"A frame has {features.shape[1]} features that are no grid, and videos are pooled as grids; "
            "expected a projector that keeps one, such as mlp2x_gelu."
        )
    if features.shape[1] != side**2:
        raise UserError(
            f"A frame has {features.shape[1]} features and is no square of {side} x {side} patches, which "
            "videos need; mm_vision_select_feature has to be 'patch'."
        )
    maps = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (frames, C, side, side)
    if settings.pool_mode == "bilinear":
        size = pooled_side(side, settings)
        maps = F.interpolate(maps, (size, size), mode="bilinear")
    else:
        pool = F.avg_pool2d if settings.pool_mode == "average" else F.max_pool2d
        maps = pool(maps, settings.pool_stride)
    return maps.flatten(2).transpose(1, 2)


def join_frames(
    features: torch.Tensor, settings: MultimodalConfig, image_newline: torch.Tensor | None
) -> torch.Tensor:
    """Join pooled frames (frames, P, C) into one sequence (length, C).

    `mm_newline_position` says where image_newline stands: behind each line ("grid") or frame ("frame"), at
    the end ("one_token", with an unpad merge only) or nowhere ("no_token"). A "flat" merge has none.
    """
    position = _position(settings)
    if position == "no_token":
        return features.flatten(0, 1)
    if image_newline is None:
        raise UserError(f"mm_newline_position is {position!r}, but the model has no image_newline.")
    newline = image_newline.to(features)
    if position == "one_token":
        return torch.cat((features.flatten(0, 1), newline[None]))
    if position == "frame":
        return torch.cat((features, newline.expand(len(features), 1, -1)), dim=1).flatten(0, 1)
    side = math.isqrt(features.shape[1])
    lines = features.unflatten(1, (side, side))  # (frames, side, side, C)
    ends = newline.expand(len(features), side, 1, -1)
    return torch.cat((lines, ends), dim=2).flatten(0, 2)


def _position(settings: MultimodalConfig) -> str:
    """Return where newlines stand, after what the merge has to say."""
    position = settings.newline_position
    if settings.merge_type == "flat" or (position == "one_token" and not settings.has_newline):
        return "no_token"
    return position


def count_video_features(frames: int, *, settings: MultimodalConfig, patches_per_side: int) -> int:
    """Count the features that a video of so many frames becomes, without computing any."""
    side = pooled_side(patches_per_side, settings)
    extra = {"grid": frames * side, "frame": frames, "one_token": 1, "no_token": 0}[_position(settings)]
    return frames * side**2 + extra
