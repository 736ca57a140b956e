"""The table of projectors: how they are called, what builds them, and the tokens that they make of a tile."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.tile import TileFeatures
from llava.model.multimodal_projector import mlp, pooling, resampler
from llava.utils import UserError

Build = Callable[[PreTrainedConfig, "re.Match[str]"], nn.Module]
Tokens = Callable[[TileFeatures, "re.Match[str]"], TileFeatures]


def _as_many(tile: TileFeatures, match: re.Match[str]) -> TileFeatures:
    return tile


@dataclass(frozen=True)
class Projector:
    """A kind of projector.

    label: how messages write its name. build: the module, for a config with `mm_hidden_size` (width of the
    tower's features) and `hidden_size` (the LLM's), and the match of the name. tokens: what it makes of the
    features of a tile, known without running it; raises UserError for a tile that it cannot take.
    keeps_width: whether tokens are as wide as features, which then have to have the LLM's width.
    """

    label: str
    build: Build
    tokens: Tokens = _as_many
    keeps_width: bool = False


PROJECTORS: dict[str, Projector] = {}  # by the pattern of the whole `mm_projector_type`


def register_projector(
    pattern: str, label: str, build: Build, tokens: Tokens = _as_many, *, keeps_width: bool = False
) -> None:
    """Let `mm_projector_type` be a name that matches `pattern`; see `Projector` for the others."""
    PROJECTORS[pattern] = Projector(label, build, tokens, keeps_width)


_N = r"([1-9]\d*)"
_EDGE = r"([2-9]|[1-9]\d+)"
register_projector(r"linear", "linear", mlp.linear)
register_projector(rf"mlp{_N}x_gelu", "mlpNx_gelu (N linear layers, e.g. mlp2x_gelu)", mlp.mlp)
register_projector(r"identity", "identity", mlp.identity, keeps_width=True)
register_projector(
    rf"mlp{_N}x_res{_N}x_gelu",
    "mlpNx_resMx_gelu (then M residual blocks, e.g. mlp2x_res2x_gelu)",
    mlp.residual_mlp,
)
register_projector(
    rf"avg_pool{_EDGE}x_mlp{_N}x_gelu",
    "avg_poolNx_mlpMx_gelu (means of N x N patches, e.g. avg_pool2x_mlp2x_gelu)",
    pooling.average_pool,
    pooling.pooled_tile,
)
register_projector(
    rf"pixel_shuffle{_EDGE}x_mlp{_N}x_gelu",
    "pixel_shuffleNx_mlpMx_gelu (N x N patches side by side, e.g. pixel_shuffle2x_mlp2x_gelu)",
    pooling.pixel_shuffle,
    pooling.shuffled_tile,
)
register_projector(
    rf"(perceiver|qformer){_N}x_{_N}tokens",
    "perceiverDx_Ntokens and qformerDx_Ntokens (D layers, N tokens a tile, e.g. perceiver2x_64tokens)",
    resampler.resampler,
    resampler.budget,
)


def find_projector(name: str) -> tuple[Projector, re.Match[str]]:
    """Return the projector that a `mm_projector_type` names, and its match. Raises UserError if unknown."""
    for pattern, projector in PROJECTORS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return projector, match
    known = ", ".join(projector.label for projector in PROJECTORS.values())
    raise UserError(f"Unknown mm_projector_type {name!r}; known projectors: {known}.")


def check_widths(config: PreTrainedConfig) -> None:
    """Raise UserError for a projector that cannot bring the tower's features to the LLM's width."""
    name = MultimodalConfig.of(config).projector_type
    if find_projector(name)[0].keeps_width and config.mm_hidden_size != config.hidden_size:
        raise UserError(
            f"mm_projector_type is {name!r}, and the tower's features are {config.mm_hidden_size} wide, the "
            f"LLM's {config.hidden_size}; expected equal widths, or a projector such as linear."
        )


def projected_tile(settings: MultimodalConfig, features: TileFeatures) -> TileFeatures:
    """Return what the projector of these settings makes of the tower's features of a tile; nothing is run.

    Raises UserError where the two, or the projector and mm_patch_merge_type, do not go together.
    """
    projector, match = find_projector(settings.projector_type)
    tile = projector.tokens(features, match)
    if settings.merge_type != "flat" and tile.side < (2 if settings.max_pools else 1):
        made = f"are a grid of {tile.side} x {tile.side}" if tile.side else "are no grid"
        raise UserError(
            f"mm_projector_type is {settings.projector_type!r}, whose tokens {made}, and "
            f"mm_patch_merge_type {settings.merge_type!r} works on the grids of tiles; expected 'flat'."
        )
    return tile
