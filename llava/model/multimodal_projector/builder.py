"""Projectors that map vision features to the LLM's width, and the table that names them."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig

from llava.model.multimodal.config import MultimodalConfig
from llava.utils import UserError


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
    """Pre-norm residual block of two linear layers; kept for projects that import it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.proj = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., channels) to (..., channels)."""
        x = self.pre_norm(x)
        return x + self.proj(x)


def _linear(vision_width: int, llm_width: int, match: re.Match[str]) -> nn.Module:
    return nn.Linear(vision_width, llm_width)


def _mlp_gelu(vision_width: int, llm_width: int, match: re.Match[str]) -> nn.Module:
    depth = int(match.group(1))
    layers: list[nn.Module] = [nn.Linear(vision_width, llm_width)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(llm_width, llm_width)]
    return nn.Sequential(*layers)


def _identity(vision_width: int, llm_width: int, match: re.Match[str]) -> nn.Module:
    return IdentityMap()


ProjectorFactory = Callable[[int, int, "re.Match[str]"], nn.Module]

# pattern of the whole `mm_projector_type` -> (how it is written in messages, factory); add a projector with
# one line
PROJECTORS: dict[str, tuple[str, ProjectorFactory]] = {
    r"linear": ("linear", _linear),
    r"mlp([1-9]\d*)x_gelu": ("mlpNx_gelu (N linear layers, e.g. mlp2x_gelu)", _mlp_gelu),
    r"identity": ("identity", _identity),
}


def find_projector(name: str) -> tuple[ProjectorFactory, re.Match[str]]:
    """Return the factory that a `mm_projector_type` names, and its match. Raises UserError if unknown."""
    for pattern, (_, factory) in PROJECTORS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return factory, match
    known = ", ".join(label for label, _ in PROJECTORS.values())
    raise UserError(f"Unknown mm_projector_type {name!r}; known projectors: {known}.")


def build_vision_projector(config: PreTrainedConfig, delay_load: bool = False, **kwargs: object) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names ("linear" when absent).

    `config` has `mm_hidden_size` (vision width) and `hidden_size` (LLM width). Raises UserError (a
    ValueError) for an unknown name. `delay_load` and further keywords are accepted for the reference's
    callers.
    """
    factory, match = find_projector(MultimodalConfig.of(config).projector_type)
    return factory(config.mm_hidden_size, config.hidden_size, match)
