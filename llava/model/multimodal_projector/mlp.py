"""Projectors that map each feature by itself: linear layers, residual blocks, nothing."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import PreTrainedConfig


class IdentityMap(nn.Module):
    """Passes features through; for towers whose width already is the LLM's."""

    def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        """Return `x` unchanged."""
        return x

    @property
    def config(self) -> dict[str, str]:
        """The setting that rebuilds this projector."""
        return {"mm_projector_type": "identity"}


class SimpleResBlock(nn.Module):
    """Two linear layers whose result is added to their normed input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.proj = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., channels) to (..., channels)."""
        x = self.pre_norm(x)
        return x + self.proj(x)


def mlp_layers(width: int, llm_width: int, depth: int) -> list[nn.Module]:
    """Return `depth` linear layers with GELU between them; the first changes the width."""
    layers: list[nn.Module] = [nn.Linear(width, llm_width)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(llm_width, llm_width)]
    return layers


def linear(config: PreTrainedConfig, match: re.Match[str]) -> nn.Module:
    """Build `linear`."""
    return nn.Linear(config.mm_hidden_size, config.hidden_size)


def mlp(config: PreTrainedConfig, match: re.Match[str]) -> nn.Module:
    """Build `mlpNx_gelu`."""
    return nn.Sequential(*mlp_layers(config.mm_hidden_size, config.hidden_size, int(match[1])))


def residual_mlp(config: PreTrainedConfig, match: re.Match[str]) -> nn.Module:
    """Build `mlpNx_resMx_gelu`, with the weight names of LLaVA-NeXT."""
    layers = mlp_layers(config.mm_hidden_size, config.hidden_size, int(match[1]))
    return nn.Sequential(*layers, *(SimpleResBlock(config.hidden_size) for _ in range(int(match[2]))))


def identity(config: PreTrainedConfig, match: re.Match[str]) -> nn.Module:
    """Build `identity`."""
    return IdentityMap()
