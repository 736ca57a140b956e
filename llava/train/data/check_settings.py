"""What the data doctor checks, and against which model."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class CheckSettings:
    """What is checked and against which model; the fields are named after the flags of training."""

    data_path: str
    image_folder: str | None = None
    allow_images_outside_folder: bool = False
    data_cache_dir: str | None = None
    model_name_or_path: str | None = None  # without one, tokens are not counted
    version: str = "v1"
    model_max_length: int = 2048
    vision_tower: str | None = None  # without one, an image counts as one token
    image_aspect_ratio: str = "square"
    image_grid_pinpoints: str | None = None  # by default the model's
    mm_patch_merge_type: str = "flat"
    mm_vision_select_feature: str = "patch"
    mm_vision_select_layer: int | None = None  # by default the model's
    mm_vision_resolution: int | None = None  # by default the model's
    mm_projector_type: str | None = None  # by default the model's
    mm_use_im_start_end: bool = False
    label_masks: str | None = None  # by default as training chooses
