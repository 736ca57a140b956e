"""Checks a checkpoint's multimodal settings, with its tower's, before anything is built on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.model.checkpoints.files import CONFIG_FILE, CheckpointError
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.registry import describe_tower
from llava.model.multimodal_encoder.vision_model import layers_needed
from llava.model.multimodal_projector.registry import find_projector, projected_tile
from llava.utils import UserError


def check_settings(config: Mapping[str, Any], path: str) -> MultimodalConfig:
    """Check the content of a LLaVA's config.json, which lies in `path`; returns its settings.

    Raises CheckpointError with one sentence: file, field, value found, and what is known or expected.
    """
    try:
        settings = MultimodalConfig.checked(config)
        find_projector(settings.projector_type)
        if settings.vision_tower:  # without one the loader says what is missing
            check_against_tower(settings, describe_tower(settings))
    except UserError as error:
        raise CheckpointError(f"{path}/{CONFIG_FILE}: {error}{_tower_inside(config, path)}") from error
    return settings


def _tower_inside(config: Mapping[str, Any], path: str) -> str:
    """Name the tower that lies in a checkpoint's folder, where the named one is gone: a folder was moved."""
    tower = config.get("mm_vision_tower")
    if not isinstance(tower, str) or not tower or os.path.exists(tower):
        return ""
    inside = Path(path) / Path(tower).name
    return f" This folder has one of that name: {inside}." if os.path.isfile(inside / CONFIG_FILE) else ""


def check_against_tower(settings: MultimodalConfig, tower: VisionTower) -> None:
    """Raise UserError where settings do not fit the tower they name: its layers, width, tokens or tiles."""
    name = tower.vision_tower_name
    layers_needed(settings.select_layer, tower.num_layers)
    if settings.select_feature == "cls_patch" and not tower.prefix_tokens:
        raise UserError(
            f"mm_vision_select_feature is 'cls_patch', and the vision tower {name} has no CLS token; "
            "expected 'patch'."
        )
    if settings.hidden_size != tower.hidden_size:
        raise UserError(
            f"mm_hidden_size is {settings.hidden_size}, and features of the vision tower {name} are "
            f"{tower.hidden_size} wide; is mm_vision_tower the tower that this model was trained with?"
        )
    settings.check_tiles(tower.tile_size)
    projected_tile(settings, tower.tile_features)
