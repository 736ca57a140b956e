"""The multimodal settings of a model config, read in one place with the reference's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MultimodalConfig:
    """What the multimodal code reads from `model.config`; absent fields take the reference's defaults."""

    vision_tower: str | None
    select_layer: int
    select_feature: str  # "patch" drops the CLS token, "cls_patch" keeps it
    projector_type: str
    merge_type: str  # "flat", "spatial" or "spatial_unpad"
    image_aspect_ratio: str
    image_grid_pinpoints: Any  # list of (width, height), or its text
    use_im_start_end: bool
    use_im_patch_token: bool
    tune_projector: bool
    tower_in_checkpoint: bool  # `unfreeze_mm_vision_tower`: the checkpoint brings its own tower weights
    padding_side: str
    max_length: int | None

    @classmethod
    def of(cls, config: Any) -> MultimodalConfig:
        """Read the settings from a config object (model config, argument class or namespace)."""

        def read(name: str, default: Any) -> Any:
            value = getattr(config, name, default)
            return default if value is None else value

        return cls(
            vision_tower=read("mm_vision_tower", None) or read("vision_tower", None),
            select_layer=int(read("mm_vision_select_layer", -1)),
            select_feature=read("mm_vision_select_feature", "patch"),
            projector_type=read("mm_projector_type", "linear"),
            merge_type=read("mm_patch_merge_type", "flat"),
            image_aspect_ratio=read("image_aspect_ratio", "square"),
            image_grid_pinpoints=read("image_grid_pinpoints", None),
            use_im_start_end=bool(read("mm_use_im_start_end", False)),
            use_im_patch_token=bool(read("mm_use_im_patch_token", True)),
            tune_projector=bool(read("tune_mm_mlp_adapter", False)),
            tower_in_checkpoint=bool(read("unfreeze_mm_vision_tower", False)),
            padding_side=read("tokenizer_padding_side", "right"),
            max_length=read("tokenizer_model_max_length", None),
        )
