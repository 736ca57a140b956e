"""Builds the vision tower that a config names; its class comes from the tower's own config."""

from __future__ import annotations

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.registry import TOWERS, build_tower, register_tower

__all__ = ["TOWERS", "build_vision_tower", "register_tower"]


def build_vision_tower(vision_tower_cfg: object, **kwargs: bool) -> VisionTower:
    """Build the tower named by `mm_vision_tower` (or `vision_tower`): a local folder or a hub name.

    Keywords go to the tower (`delay_load`). Raises UserError (a ValueError) when there is no such tower or
    its kind is unknown.
    """
    return build_tower(MultimodalConfig.of(vision_tower_cfg), **kwargs)
