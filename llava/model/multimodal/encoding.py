"""From pixel values to one feature sequence an image or video: the tower runs once, then tiles are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.features import merge_tiles
from llava.model.multimodal.splice import per_image
from llava.model.multimodal.video import join_frames, pool_frames, video_places
from llava.utils import UserError

Images = torch.Tensor | Sequence[torch.Tensor]
Sizes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Encoder:
    """The parts of a model that features pass, and its settings.

    encode: pixel values (N, 3, H, W) to projected features (N, P, C); tower and project: its two halves.
    tower_side, side: features along an edge of a tile before and behind the projector (0: no grid).
    grid_of, unpad: as in `merge_tiles`.
    """

    settings: MultimodalConfig
    encode: Callable[[torch.Tensor], torch.Tensor]
    tower: Callable[[torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]
    tower_side: int
    side: int
    tile_size: int
    image_newline: torch.Tensor | None
    grid_of: Callable[..., tuple[int, int]]
    unpad: Callable[..., torch.Tensor]

    def __call__(
        self, images: Images, image_sizes: Sizes | None, modalities: Sequence[str] | None
    ) -> list[torch.Tensor]:
        """Return one feature sequence (length, C) an image or video.

        images: (N, 3, H, W), or a list of (3, H, W), (tiles, 3, H, W) or (frames, 3, H, W), or all of one
        shape as (N, tiles, 3, H, W). image_sizes: the images' (width, height), needed for spatial merges.
        modalities: which of them are videos.
        """
        videos = video_places(modalities, len(images))
        if torch.is_tensor(images) and images.ndim == 4 and not videos:
            return list(self.encode(images))
        tiles = per_image(images)
        spatial = self.settings.merge_type != "flat"
        if image_sizes is not None and len(image_sizes) < len(tiles) and spatial:
            raise UserError(f"{len(tiles)} images came with {len(image_sizes)} image_sizes.")
        return [
            self._video(features)
            if index in videos
            else features[0]
            if videos and not self.settings.tiles  # as among images alone: one tile, and no newline
            else self._image(features, image_sizes[index] if image_sizes is not None and spatial else None)
            for index, features in enumerate(self._encoded(tiles, videos))
        ]

    def _encoded(self, tiles: Sequence[torch.Tensor], videos: set[int]) -> Sequence[torch.Tensor]:
        """Return the projected features of each, (tiles, P, C) or pooled (frames, P, C)."""
        lengths = [len(one) for one in tiles]
        first = bool(videos) and self.settings.pools_first
        found = (self.tower if first else self.encode)(torch.cat(list(tiles))).split(lengths)
        pooled = [self._pooled(one) if index in videos else one for index, one in enumerate(found)]
        return [self.project(one) for one in pooled] if first else pooled

    def _pooled(self, features: torch.Tensor) -> torch.Tensor:
        side = self.side
        if self.settings.pools_first and side != (side := self.tower_side):
            raise UserError(
                "mm_resampler_type spatial_pool pools frames before the projector, and "
                f"{self.settings.projector_type} makes other grids; expected a projector such as mlp2x_gelu."
            )
        return pool_frames(features, side, self.settings)

    def _video(self, features: torch.Tensor) -> torch.Tensor:
        return join_frames(features, self.settings, self.image_newline)

    def _image(self, features: torch.Tensor, size: Sequence[int] | None) -> torch.Tensor:
        return merge_tiles(
            features,
            size,
            settings=self.settings,
            patches_per_side=self.side,
            tile_size=self.tile_size,
            image_newline=self.image_newline,
            grid_of=self.grid_of,
            unpad=self.unpad,
        )
