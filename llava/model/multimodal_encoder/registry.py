"""The table of vision towers: which class belongs to the `model_type` of a tower's own config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.model.checkpoints.files import CheckpointError, read_config
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.s2 import multi_scale
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from llava.utils import UserError

TOWERS: dict[str, type[VisionTower]] = {}


def register_tower(tower_class: type[VisionTower], *model_types: str) -> None:
    """Let `mm_vision_tower` be a folder whose config.json has one of these model types."""
    for model_type in model_types:
        TOWERS[model_type] = tower_class


register_tower(CLIPVisionTower, "clip", "clip_vision_model")
register_tower(SiglipVisionTower, "siglip", "siglip_vision_model")


def tower_class_names() -> list[str]:
    """Return the names of all tower classes, which a device map keeps whole."""
    return sorted({one.__name__ for tower in TOWERS.values() for one in (tower, multi_scale(tower))})


def tower_class(config: Mapping[str, Any], name: str) -> type[VisionTower]:
    """Return the class for the content of a tower's config.json. Raises UserError for an unknown type."""
    model_type = config.get("model_type")
    if model_type not in TOWERS:
        raise UserError(
            f"The vision tower {name} is of type {model_type!r}; known types: {', '.join(sorted(TOWERS))}."
        )
    return TOWERS[model_type]


def build_tower(settings: MultimodalConfig, **kwargs: bool) -> VisionTower:
    """Build the tower that the settings name; keywords go to it (`delay_load`). Raises UserError."""
    name = settings.vision_tower
    if not name:
        raise UserError("The config names no vision tower; expected mm_vision_tower or vision_tower.")
    found = tower_class(read_tower_config(name), name)
    return (multi_scale(found) if settings.s2 else found)(name, args=settings, **kwargs)


def read_tower_config(name: str) -> dict[str, Any]:
    """Read the config.json of a tower. Raises CheckpointError that says what names it and what helps."""
    try:
        return read_config(name)
    except CheckpointError as error:
        place = "" if Path(name).is_absolute() else f" (looked for the folder {Path(name).absolute()})"
        raise CheckpointError(
            f"The vision tower {name!r}, which mm_vision_tower or --vision_tower names, is missing{place}: "
            f"{error} Download the tower, or put its place into mm_vision_tower of config.json."
        ) from error


def describe_tower(settings: MultimodalConfig) -> VisionTower:
    """Return the tower that the settings name with its config alone: sizes and classes, no weights."""
    return build_tower(settings.without_stored_tower(), delay_load=True)
