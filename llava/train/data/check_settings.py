"""What the data doctor checks, and against which model."""

from __future__ import annotations

from dataclasses import dataclass

from llava.video import Sampling

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class CheckSettings:
    """What is checked and against which model; the fields are named after the flags of training."""

    data_path: str
    image_folder: str | None = None
    video_folder: str | None = None  # by default the image folder
    video_fps: float = 1.0
    frames_upbound: int = 0  # no limit
    add_time_instruction: bool = False
    force_sample: bool = False
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
    mm_spatial_pool_mode: str | None = None  # this and the next two by default the model's
    mm_spatial_pool_stride: int | None = None
    mm_newline_position: str | None = None
    mm_use_im_start_end: bool = False
    label_masks: str | None = None  # by default as training chooses

    @property
    def sampling(self) -> Sampling:
        """Which frames of a video are taken."""
        return Sampling(self.frames_upbound, self.video_fps, always=self.force_sample)
