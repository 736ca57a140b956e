"""Builds the vision tower that a config names; its class comes from the tower's own config."""

from __future__ import annotations

from typing import Any

from llava.model.checkpoints.files import read_config
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.s2 import CLIPVisionTowerS2
from llava.utils import UserError

# `model_type` of the tower's config -> (tower class, its S2 variant); add a tower with one line
TOWERS: dict[str, tuple[type[CLIPVisionTower], type[CLIPVisionTower]]] = {
    "clip": (CLIPVisionTower, CLIPVisionTowerS2),
    "clip_vision_model": (CLIPVisionTower, CLIPVisionTowerS2),
}


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> CLIPVisionTower:
    """Build the tower named by `mm_vision_tower` (or `vision_tower`): a local folder or a hub name.

    Keywords go to the tower (`delay_load`). Raises UserError (a ValueError) when there is no such tower or
    its kind is unknown.
    """
    name = MultimodalConfig.of(vision_tower_cfg).vision_tower
    if not name:
        raise UserError("The config names no vision tower; expected mm_vision_tower or vision_tower.")
    model_type = read_config(name).get("model_type")
    if model_type not in TOWERS:
        raise UserError(
            f"The vision tower {name} is of type {model_type!r}; known types: {', '.join(sorted(TOWERS))}."
        )
    plain, multi_scale = TOWERS[model_type]
    tower_class = multi_scale if getattr(vision_tower_cfg, "s2", False) else plain
    return tower_class(name, args=vision_tower_cfg, **kwargs)
