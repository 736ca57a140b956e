"""Any tower at several scales, each tiled to the tower's input size (S2, https://arxiv.org/abs/2403.13043)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.image_processor import resize_processor
from llava.utils import UserError

DEFAULT_SCALES = "336,672,1008"


def split_tiles(images: torch.Tensor, per_side: int) -> torch.Tensor:
    """Cut (N, C, S, S) into tiles (per_side^2 * N, C, S / per_side, S / per_side), tile-major."""
    n, c, height, width = images.shape
    tiles = images.reshape(n, c, per_side, height // per_side, per_side, width // per_side)
    return tiles.permute(2, 4, 0, 1, 3, 5).reshape(-1, c, height // per_side, width // per_side)


def merge_tiles(maps: torch.Tensor, per_side: int) -> torch.Tensor:
    """Undo `split_tiles` on feature maps: (per_side^2 * N, C, h, w) to (N, C, per_side * h, per_side * w)."""
    _, c, height, width = maps.shape
    maps = maps.reshape(per_side, per_side, -1, c, height, width)
    return maps.permute(2, 3, 0, 4, 1, 5).reshape(-1, c, per_side * height, per_side * width)


class MultiScale(VisionTower):
    """Stands before a tower's class: features are those of all scales, side by side, width C * scales.

    `s2_scales` of the config lists the scales in pixels; the smallest is the tower's own image size, the
    others are multiples of it. The image processor makes images of the largest scale.
    """

    converts_to_hf = ()

    def __init__(self, vision_tower: str, args: object, delay_load: bool = False) -> None:
        text = MultimodalConfig.of(args).s2_scales or DEFAULT_SCALES
        try:
            self.s2_scales = sorted(int(scale) for scale in str(text).split(","))
        except ValueError as error:
            raise UserError(
                f"s2_scales is {text!r}; expected pixels separated by commas, e.g. 336,672,1008."
            ) from error
        self.s2_split_size = self.s2_scales[0]
        self.s2_image_size = self.s2_scales[-1]
        super().__init__(vision_tower, args, delay_load)
        self._check_scales()

    def _check_scales(self) -> None:
        base = self.tile_size
        if self.s2_split_size != base or any(scale % base for scale in self.s2_scales):
            raise UserError(
                f"s2_scales are {self.s2_scales}; this tower sees {base} pixels, so the smallest must be "
                f"{base} and the others multiples of it."
            )

    def _build_image_processor(self) -> Any:
        return resize_processor(super()._build_image_processor(), self.s2_image_size)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of (N, 3, S, S) at every scale: (N, P, C * scales)."""
        if self.select_feature != "patch":
            raise UserError(
                f"mm_vision_select_feature is {self.select_feature!r}; S2 works on 'patch' features only."
            )
        side = self.num_patches_per_side
        maps = []
        for scale in self.s2_scales:
            per_side = scale // self.s2_split_size
            resized = F.interpolate(images.to(self.device).float(), size=(scale, scale), mode="bicubic")
            features = super()._features(split_tiles(resized.to(images.dtype), per_side))  # (tiles * N, P, C)
            tile_maps = features.transpose(1, 2).reshape(features.shape[0], -1, side, side)
            merged = merge_tiles(tile_maps, per_side)  # (N, C, per_side * side, per_side * side)
            maps.append(F.interpolate(merged.float(), size=(side, side), mode="area").to(features.dtype))
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)  # (N, P, C * scales)

    @property
    def input_size(self) -> int:
        """Edge in pixels of the images that its processor makes: those of the largest scale."""
        return self.s2_image_size

    @property
    def hidden_size(self) -> int:
        """Width of the features: the tower's own times the number of scales."""
        return super().hidden_size * len(self.s2_scales)


def multi_scale(tower_class: type[VisionTower]) -> type[MultiScale]:
    """Return the class of a tower at several scales: `CLIPVisionTower` gives `CLIPVisionTowerS2`."""
    key: Any = tower_class  # the cache asks for a Hashable, which mypy does not see in a class
    return _multi_scale(key)


@cache
def _multi_scale(tower_class: type[VisionTower]) -> type[MultiScale]:
    names = {"__module__": tower_class.__module__, "__doc__": f"{tower_class.__name__} at several scales."}
    return type(f"{tower_class.__name__}S2", (MultiScale, tower_class), names)
