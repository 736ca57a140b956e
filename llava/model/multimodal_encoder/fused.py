"""Several vision towers as one, `a+b`: each has its own processor, and the features stand side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.protocols import DeviceMap
from llava.utils import UserError

SEPARATOR = "+"
CHANNELS = 3


def split_name(name: str) -> list[str]:
    """Return the names of the towers in `a+b`; none for one tower, even if its folder has a + in its name."""
    parts = [part.strip() for part in name.split(SEPARATOR)]
    if len(parts) == 1 or os.path.isdir(name):
        return []
    if not all(parts):
        raise UserError(
            f"The vision tower {name!r} has a + without a name beside it; expected folders or hub names "
            "joined by +, e.g. siglip+dinov2."
        )
    return parts


class FusedProcessor:
    """The image processors of several towers as one: their pixel values stand one after another as channels.

    Values of a smaller processor are padded with zeros to the size of the largest, and cut out again by the
    tower. Its `size` and `image_mean` (the colour that images are padded with) are those of the first.
    """

    def __init__(self, processors: Sequence[Any], edge: int) -> None:
        self.processors = list(processors)
        self.channels = CHANNELS * len(self.processors)
        self.size = {"height": edge, "width": edge}
        self.crop_size = dict(self.size)
        self.image_mean = self.processors[0].image_mean
        self.image_std = self.processors[0].image_std

    def preprocess(
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str = "pt"
    ) -> dict[str, torch.Tensor]:
        """Return pixel_values (N, 3 * towers, H, W)."""
        values = [
            torch.as_tensor(one.preprocess(images, return_tensors=return_tensors)["pixel_values"])
            for one in self.processors
        ]
        edge = self.size["height"]
        padded = [F.pad(one, (0, edge - one.shape[-1], 0, edge - one.shape[-2])) for one in values]
        return {"pixel_values": torch.cat(padded, dim=1)}

    __call__ = preprocess

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save nothing: each tower's folder holds its own processor."""


class FusedVisionTower(VisionTower):
    """Towers whose grids agree; features (N, P, C) with C the sum of their widths."""

    def __init__(self, name: str, settings: MultimodalConfig, towers: Sequence[VisionTower]) -> None:
        nn.Module.__init__(self)
        self.vision_tower_name = name
        modules: Any = nn.ModuleList(towers)  # stands where one tower has its model
        self.vision_tower = modules
        self.not_of_the_tower: tuple[str, ...] = ()
        self.is_loaded = all(one.is_loaded for one in towers)
        self.resolution = settings.resolution
        self.check_grids()
        self.select_feature = settings.select_feature
        self.select_layer = settings.select_layer

    @property
    def towers(self) -> list[VisionTower]:
        """The towers, in the order of the name."""
        modules: Any = self.vision_tower
        return list(modules)

    def omit_unneeded(self, missing: Iterable[str]) -> bool:
        """Remove nothing: fused towers are stored whole."""
        return False

    def cut_stored(self) -> None:
        """Leave out nothing, for the same reason."""

    def defer_stored(self, source: str, left_over: Iterable[str]) -> tuple[str, ...]:
        """Return nothing: no layer was left out."""
        return ()

    def check_grids(self) -> None:
        """Raise UserError for towers that cut images into different numbers of patches."""
        grids = {one.vision_tower_name: one.num_patches_per_side for one in self.towers}
        if len(set(grids.values())) > 1:
            found = ", ".join(f"{name} has {side} x {side} patches" for name, side in grids.items())
            raise UserError(
                f"The vision towers of {self.vision_tower_name} do not go together: {found}; expected equal "
                "grids."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the selected layer and feature for every tower."""
        if name in ("select_layer", "select_feature"):
            for one in self.towers:
                setattr(one, name, value)
        super().__setattr__(name, value)

    def load_model(self, device_map: DeviceMap = None, *, whole: bool = True) -> None:
        """Load every tower from its own files."""
        for one in self.towers:
            one.load_model(device_map, whole=whole)
        self.is_loaded = True
        self.unread = tuple(name for one in self.towers for name in one.unread)
        self.not_of_the_tower = tuple(name for one in self.towers for name in one.not_of_the_tower)

    def forget_weights(self) -> None:
        """Return to the state before loading."""
        for one in self.towers:
            one.forget_weights()
        self.is_loaded = False

    def _build_image_processor(self) -> FusedProcessor:
        return FusedProcessor([one.image_processor for one in self.towers], self.input_size)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of (N, 3 * towers, H, W): (N, P, C)."""
        if images.shape[1] != self.channels:
            raise UserError(
                f"The vision tower {self.vision_tower_name} is given images of {images.shape[1]} channels; "
                f"expected {self.channels}, as its image_processor makes them."
            )
        parts = []
        for one, pixels in zip(self.towers, images.split(CHANNELS, dim=1), strict=True):
            edge = one.input_size
            parts.append(one(pixels[..., :edge, :edge]))
        return torch.cat(parts, dim=-1)

    def unfreeze(self) -> None:
        """Make trainable what the selected features of each tower depend on."""
        for one in self.towers:
            one.unfreeze()

    @property
    def channels(self) -> int:
        """Channels of the images that it is given."""
        return CHANNELS * len(self.towers)

    @property
    def config(self) -> Any:
        """The first tower's config."""
        return self.towers[0].config

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches; 0 unless all towers have as many."""
        counts = {one.prefix_tokens for one in self.towers}
        return counts.pop() if len(counts) == 1 else 0

    @property
    def hidden_size(self) -> int:
        """Width C of the features, all towers together."""
        return sum(one.hidden_size for one in self.towers)

    @property
    def num_layers(self) -> int:
        """Layers of the shallowest tower."""
        return min(one.num_layers for one in self.towers)

    @property
    def tile_size(self) -> int:
        """Edge in pixels of what it takes at once: of the tower with the largest images."""
        return max(one.tile_size for one in self.towers)

    @property
    def input_size(self) -> int:
        """Edge in pixels of the images that its processor makes."""
        return max(one.input_size for one in self.towers)

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one edge, the same for all towers."""
        return self.towers[0].num_patches_per_side
