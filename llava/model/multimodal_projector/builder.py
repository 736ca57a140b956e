"""Builds the projector that a config names; its kinds are in the registry."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_projector.mlp import IdentityMap, SimpleResBlock
from llava.model.multimodal_projector.registry import PROJECTORS, find_projector, register_projector

__all__ = ["PROJECTORS", "IdentityMap", "SimpleResBlock", "build_vision_projector", "register_projector"]


def build_vision_projector(config: PreTrainedConfig, delay_load: bool = False, **kwargs: object) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names ("linear" when absent).

    `config` has `mm_hidden_size` (vision width) and `hidden_size` (LLM width). Raises UserError (a
    ValueError) for an unknown name. `delay_load` and further keywords are accepted for the reference's
    callers.
    """
    projector, match = find_projector(MultimodalConfig.of(config).projector_type)
    return projector.build(config, match)
