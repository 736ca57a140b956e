"""The table of vision towers: which class belongs to the `model_type` of a tower's own config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.model.checkpoints.files import CONFIG_FILE, CheckpointError
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder import clip_encoder, convnext_encoder, dino_encoder, vit_encoder
from llava.model.multimodal_encoder.aimv2_encoder import Aimv2VisionTower
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.fused import FusedVisionTower, split_name
from llava.model.multimodal_encoder.internvit_encoder import InternVisionTower
from llava.model.multimodal_encoder.mlcd_encoder import MLCDVisionTower
from llava.model.multimodal_encoder.published import tower_config
from llava.model.multimodal_encoder.radio_encoder import RadioVisionTower
from llava.model.multimodal_encoder.s2 import multi_scale
from llava.model.multimodal_encoder.siglip_encoder import NaflexVisionTower, SiglipVisionTower
from llava.utils import UserError

TOWERS: dict[str, type[VisionTower]] = {}

# why a kind of model is no tower, for those that people try
_REFUSED = {
    "timm_wrapper": "models of timm need that package; convert the weights to a type of transformers",
    "pixtral": "its patches come from images of any size, which LLaVA's fixed grid does not have",
    "swin": "its windows shift over maps whose grid is none of a tower's",
}


def register_tower(tower_class: type[VisionTower], *model_types: str) -> None:
    """Let `mm_vision_tower` be a folder whose config.json has one of these model types."""
    for model_type in model_types:
        TOWERS[model_type] = tower_class


register_tower(clip_encoder.CLIPVisionTower, "clip", "clip_vision_model")
register_tower(clip_encoder.MetaClip2VisionTower, "metaclip_2", "metaclip_2_vision_model")
register_tower(clip_encoder.ChineseCLIPVisionTower, "chinese_clip", "chinese_clip_vision_model")
register_tower(SiglipVisionTower, "siglip", "siglip_vision_model")
register_tower(NaflexVisionTower, "siglip2", "siglip2_vision_model")
register_tower(dino_encoder.Dinov2VisionTower, "dinov2")
register_tower(dino_encoder.Dinov2WithRegistersVisionTower, "dinov2_with_registers")
register_tower(dino_encoder.DINOv3VisionTower, "dinov3_vit")
register_tower(dino_encoder.Tipsv2VisionTower, "tipsv2", "tipsv2_vision_model")
register_tower(vit_encoder.ViTVisionTower, "vit")
register_tower(vit_encoder.DeiTVisionTower, "deit")
register_tower(vit_encoder.IJepaVisionTower, "ijepa")
register_tower(Aimv2VisionTower, "aimv2_vision_model")
register_tower(InternVisionTower, "internvl_vision")
register_tower(MLCDVisionTower, "mlcd", "mlcd_vision_model")
register_tower(RadioVisionTower, "radio")
register_tower(convnext_encoder.ConvNextVisionTower, "convnext")
register_tower(convnext_encoder.ConvNextV2VisionTower, "convnextv2")


def tower_class_names() -> list[str]:
    """Return the names of all tower classes, which a device map keeps whole."""
    return sorted({one.__name__ for tower in TOWERS.values() for one in (tower, multi_scale(tower))})


def tower_class(config: Mapping[str, Any], name: str) -> type[VisionTower]:
    """Return the class for the content of a tower's config.json. Raises UserError for an unknown type."""
    model_type = config.get("model_type")
    if model_type in _REFUSED:
        raise UserError(f"The vision tower {name} is of type {model_type!r}: {_REFUSED[model_type]}.")
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
    if names := split_name(name):
        parts = [build_tower(replace(settings, vision_tower=one), **kwargs) for one in names]
        return FusedVisionTower(name, settings, parts)
    found = tower_class(read_tower_config(name), name)
    return (multi_scale(found) if settings.s2 else found)(name, args=settings, **kwargs)


def read_tower_config(name: str) -> dict[str, Any]:
    """Read the config.json of a tower. Raises CheckpointError that says what names it and what helps."""
    try:
        return tower_config(name)
    except CheckpointError as error:
        tower = f"The vision tower {name!r}, which mm_vision_tower or --vision_tower names,"
        if (Path(name) / CONFIG_FILE).exists():
            raise CheckpointError(
                f"{tower} has a config.json that cannot be used: {error} Copy it again from where it came."
            ) from error
        place = "" if Path(name).is_absolute() else f" (looked for the folder {Path(name).absolute()})"
        raise CheckpointError(
            f"{tower} is missing{place}: {error} Download the tower, or put its place into "
            "mm_vision_tower of config.json."
        ) from error


def describe_tower(settings: MultimodalConfig) -> VisionTower:
    """Return the tower that the settings name with its config alone: sizes and classes, no weights."""
    return build_tower(settings.without_stored_tower(), delay_load=True)
