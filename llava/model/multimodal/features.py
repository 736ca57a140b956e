"""Features of one image: its tiles joined into one sequence, and how long that is before any are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from llava.mm_utils import get_anyres_image_grid_shape
from llava.model.multimodal.config import MultimodalConfig, check_merge_type
from llava.utils import UserError

# LLaVA-NeXT shrinks features of an image only where they are this much too many along an edge.
CAP_TOLERANCE = 1.1


def content_lines(image_size: Sequence[int], map_size: Sequence[int]) -> tuple[int, int]:
    """Return the borders (above and below, left and right) that padding has put round a map (height, width).

    image_size: the image's (width, height). Rounds as LLaVA 1.6 was trained: a border is the floor of half
    the surplus on both sides, so an odd surplus leaves one padded line.
    """
    width, height = image_size
    map_height, map_width = map_size
    if width / height > map_width / map_height:  # padded above and below
        return (map_height - int(height * (map_width / width))) // 2, 0
    return 0, (map_width - int(width * (map_height / height))) // 2


def unpad_image(tensor: torch.Tensor, original_size: Sequence[int]) -> torch.Tensor:
    """Cut the rows or columns off a feature map (C, H, W) that padding to the grid's shape had added.

    `original_size` is the image's (width, height); see `content_lines` for the rounding.
    """
    height, width = tensor.shape[1:]
    above, left = content_lines(original_size, (height, width))
    return tensor[:, above : height - above, left : width - left]


def capped_size(height: int, width: int, *, cap: int | None, patches_per_side: int) -> tuple[int, int]:
    """Return the size that a map (height, width) is shrunk to so that it keeps about `cap` tiles' patches.

    A map that is only a little too large, or cap None, stays.
    """
    times = math.sqrt(height * width / (cap * patches_per_side**2)) if cap else 0
    if times <= CAP_TOLERANCE:
        return height, width
    return max(1, int(height // times)), max(1, int(width // times))


def merge_tiles(
    features: torch.Tensor,
    image_size: Sequence[int] | None,
    *,
    settings: MultimodalConfig,
    patches_per_side: int,
    tile_size: int,
    image_newline: torch.Tensor | None,
    grid_of: Callable[..., tuple[int, int]] = get_anyres_image_grid_shape,
    unpad: Callable[..., torch.Tensor] = unpad_image,
) -> torch.Tensor:
    """Join the features (tiles, P, C) of one image, overview first, into one sequence (length, C).

    `image_size` is the image's (width, height), `tile_size` the tower's input size in pixels. "flat" puts
    tile after tile; "spatial" reads the tiles' patches line by line across the image; "spatial_unpad" also
    drops padding and ends each line with `image_newline`, and anyres_max_N shrinks what is left;
    "maxpool2x2" keeps the largest of 2 x 2 patches, "nobase" omits the overview. grid_of and unpad: the
    functions that find the grid of tiles and drop the padding. Raises UserError, NotImplementedError for
    spatial merges without tiles.
    """
    kind = check_merge_type(settings.merge_type)
    if kind == "flat":
        return features.flatten(0, 1)
    newline = image_newline if settings.has_newline else None
    if settings.has_newline and newline is None:
        raise UserError(f"mm_patch_merge_type is {kind!r}, but the model has no image_newline.")
    if features.shape[0] == 1:  # the overview alone
        return features[0] if newline is None else torch.cat((features[0], newline[None].to(features)))
    if not settings.tiles:
        raise NotImplementedError(
            f"mm_patch_merge_type {kind!r} needs image_aspect_ratio 'anyres' or 'anyres_max_N', found "
            f"{settings.image_aspect_ratio!r}."
        )
    if image_size is None:
        raise UserError(
            f"mm_patch_merge_type {kind!r} needs image_sizes, the (width, height) of every image."
        )
    overview, tiles = features[0], features[1:]
    width, height = (int(edge) for edge in image_size)
    columns, rows = grid_of((width, height), settings.image_grid_pinpoints, tile_size)
    if tiles.shape[0] != rows * columns or tiles.shape[1] != patches_per_side**2:
        raise UserError(
            f"An image of {width} x {height} pixels needs {rows * columns} tiles of {patches_per_side**2} "
            f"patches, found {tiles.shape[0]} of {tiles.shape[1]}; do image_sizes belong to these images?"
        )
    grid = tiles.view(rows, columns, patches_per_side, patches_per_side, -1)  # (rows, cols, h, w, C)
    plane = grid.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)  # (C, rows * h, cols * w)
    if settings.max_pools:
        plane = F.max_pool2d(plane, 2)
    elif newline is not None:
        plane = unpad(plane, (width, height))
        size = capped_size(*plane.shape[1:], cap=settings.tile_cap, patches_per_side=patches_per_side)
        if size != tuple(plane.shape[1:]):
            plane = F.interpolate(plane[None], size, mode="bilinear")[0]
        plane = _with_line_ends(plane, newline)
    merged = plane.flatten(1, 2).transpose(0, 1)  # (length, C)
    return merged if settings.omits_overview else torch.cat((overview, merged))


def _with_line_ends(plane: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
    """Put the newline (C,) behind every line of a map (C, H, W): (C, H, W + 1)."""
    ends = newline[:, None, None].to(plane).expand(-1, plane.shape[1], 1)
    return torch.cat((plane, ends), dim=-1)


def count_features(
    image_size: Sequence[int],
    *,
    settings: MultimodalConfig,
    patches_per_side: int,
    extra: int,
    tile_size: int,
) -> int:
    """Count the features that an image of `image_size` (width, height) becomes, without computing any.

    extra: features of a tile beside its patches (1 with "cls_patch"); the others are merge_tiles' settings.
    """
    patches = patches_per_side**2 + extra
    if not settings.tiles:
        return patches
    width, height = (int(edge) for edge in image_size)
    columns, rows = get_anyres_image_grid_shape((width, height), settings.image_grid_pinpoints, tile_size)
    if settings.merge_type == "flat":
        return (1 + columns * rows) * patches
    lines, length = rows * patches_per_side, columns * patches_per_side
    if settings.max_pools:
        lines, length = lines // 2, length // 2
    elif settings.has_newline:
        above, left = content_lines((width, height), (lines, length))
        lines, length = lines - 2 * above, length - 2 * left
        cap = settings.tile_cap
        lines, length = capped_size(lines, length, cap=cap, patches_per_side=patches_per_side)
        length += 1  # the newline
    return lines * length + (0 if settings.omits_overview else patches)
