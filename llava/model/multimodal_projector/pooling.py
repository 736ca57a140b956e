"""Projectors that make one token of a square of patches: by its mean, or by its features side by side."""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from llava.model.multimodal.tile import TileFeatures
from llava.model.multimodal_projector.mlp import mlp_layers
from llava.utils import UserError


class AveragePool(nn.Module):
    """Means of squares of `edge` x `edge` patches; those at the right and lower border may be smaller."""

    def __init__(self, edge: int) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, side * side, C) to (N, ceil(side / edge) ** 2, C)."""
        side = math.isqrt(x.shape[1])
        plane = x.transpose(1, 2).unflatten(2, (side, side))  # (N, C, side, side)
        return F.avg_pool2d(plane, self.edge, ceil_mode=True).flatten(2).transpose(1, 2)


class PixelShuffle(nn.Module):
    """The features of squares of `edge` x `edge` patches side by side, line by line."""

    def __init__(self, edge: int) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, side * side, C) to (N, (side / edge) ** 2, edge * edge * C)."""
        n, patches, width = x.shape
        few = math.isqrt(patches) // self.edge
        squares = x.reshape(n, few, self.edge, few, self.edge, width).transpose(2, 3)
        return squares.reshape(n, few * few, self.edge**2 * width)


def average_pool(config: PreTrainedConfig, match: re.Match[str]) -> nn.Module:
    """Build `avg_poolNx_mlpMx_gelu`: means, then linear layers."""
    layers = mlp_layers(config.mm_hidden_size, config.hidden_size, int(match[2]))
    return nn.Sequential(AveragePool(int(match[1])), *layers)


def pixel_shuffle(config: PreTrainedConfig, match: re.Match[str]) -> nn.Module:
    """Build `pixel_shuffleNx_mlpMx_gelu`: squares, a norm and linear layers, as in InternVL."""
    edge = int(match[1])
    width = config.mm_hidden_size * edge**2
    layers = mlp_layers(width, config.hidden_size, int(match[2]))
    return nn.Sequential(PixelShuffle(edge), nn.LayerNorm(width), *layers)


def pooled_tile(tile: TileFeatures, match: re.Match[str]) -> TileFeatures:
    """Return the grid of means. Raises UserError for features that are no grid, or a smaller one."""
    return TileFeatures(math.ceil(tile.side / _edge(tile, match)))


def shuffled_tile(tile: TileFeatures, match: re.Match[str]) -> TileFeatures:
    """Return the grid of squares. Raises UserError for a grid that is not made of whole ones."""
    edge = _edge(tile, match)
    if tile.side % edge:
        raise UserError(
            f"mm_projector_type is {match.string!r}, which makes one token of {edge} x {edge} patches, and "
            f"the vision tower has {tile.side} x {tile.side}; expected a multiple of {edge} along an edge "
            "(avg_pool takes any)."
        )
    return TileFeatures(tile.side // edge)


def _edge(tile: TileFeatures, match: re.Match[str]) -> int:
    edge = int(match[1])
    if tile.extra:
        raise UserError(
            f"mm_projector_type is {match.string!r}, which works on the grid of patches; expected "
            "mm_vision_select_feature 'patch', found 'cls_patch'."
        )
    if edge > tile.side:
        raise UserError(
            f"mm_projector_type is {match.string!r}, which makes one token of {edge} x {edge} patches; "
            f"expected at most {tile.side}, the patches along an edge of this vision tower."
        )
    return edge
