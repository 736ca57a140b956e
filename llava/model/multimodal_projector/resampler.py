"""Projectors with a budget: learned queries read a tile's features, and are all that the LLM sees of it."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from llava.model.multimodal.tile import TileFeatures
from llava.utils import UserError

HEAD_WIDTH = 64


class Attention(nn.Module):
    """Queries (N, Q, C) read a context (N, K, C), in heads of about 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        most = max(1, width // HEAD_WIDTH)
        self.heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return what each query reads, (N, Q, C)."""
        q, k, v = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, Q or K, C / heads)
            for one in (self.q(queries), *self.kv(context).chunk(2, dim=-1))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )


class PerceiverLayer(nn.Module):
    """Queries read features and queries at once (Flamingo, https://arxiv.org/abs/2204.14198)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_queries = nn.LayerNorm(width)
        self.norm_features = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.feed_forward = _feed_forward(width)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the queries (N, Q, C) after they read features (N, P, C)."""
        normed = self.norm_queries(queries)
        context = torch.cat((self.norm_features(features), normed), dim=1)
        queries = queries + self.attention(normed, context)
        return queries + self.feed_forward(queries)


class QFormerLayer(nn.Module):
    """Queries read each other, then features (BLIP-2, https://arxiv.org/abs/2301.12597, without its text)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width)
        self.norm_queries = nn.LayerNorm(width)
        self.norm_features = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.feed_forward = _feed_forward(width)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the queries (N, Q, C) after they read features (N, P, C)."""
        normed = self.norm_self(queries)
        queries = queries + self.self_attention(normed, normed)
        queries = queries + self.attention(self.norm_queries(queries), self.norm_features(features))
        return queries + self.feed_forward(queries)


LAYERS: dict[str, type[nn.Module]] = {"perceiver": PerceiverLayer, "qformer": QFormerLayer}


class Resampler(nn.Module):
    """Learned queries, layers in which they read features, and a linear layer to the LLM's width."""

    def __init__(self, layer: type[nn.Module], depth: int, tokens: int, width: int, llm_width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.layers = nn.ModuleList(layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, llm_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (N, P, C) to (N, tokens, LLM's width)."""
        queries = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        return self.out(self.norm(queries))


def resampler(config: PreTrainedConfig, match: re.Match[str]) -> nn.Module:
    """Build `perceiverDx_Ntokens` or `qformerDx_Ntokens`."""
    kind, depth, tokens = match.groups()
    return Resampler(LAYERS[kind], int(depth), int(tokens), config.mm_hidden_size, config.hidden_size)


def budget(tile: TileFeatures, match: re.Match[str]) -> TileFeatures:
    """Return the tokens of the name, which are no grid. Raises UserError for more than there are features."""
    tokens = int(match[3])
    if tokens > tile.count:
        raise UserError(
            f"mm_projector_type is {match.string!r}, a budget of {tokens} tokens, and the vision tower gives "
            f"{tile.count} features of a tile; expected at most as many."
        )
    return TileFeatures(0, tokens)
