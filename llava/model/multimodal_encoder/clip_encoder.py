"""The CLIP vision tower of LLaVA 1, 1.5 and 1.6, the same at several scales, and towers built like it."""

from __future__ import annotations

from typing import ClassVar

from transformers import (
    ChineseCLIPImageProcessorPil,
    ChineseCLIPVisionConfig,
    ChineseCLIPVisionModel,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    MetaClip2VisionConfig,
    MetaClip2VisionModel,
)

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.s2 import multi_scale


class CLIPVisionTower(VisionTower):
    """A CLIP vision transformer; a whole CLIP serves as well, its text half is left out."""

    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    processor_class = CLIPImageProcessorPil
    prefix_tokens = 1  # CLS
    before_layers = ("embeddings", "pre_layrnorm")  # transformers' spelling
    resizing = "argument"
    converts_to_hf: ClassVar[tuple[str, ...]] = ("llava", "llava_next", "llava_next_video")


CLIPVisionTowerS2 = multi_scale(CLIPVisionTower)


class MetaClip2VisionTower(CLIPVisionTower):
    """MetaCLIP 2 (https://arxiv.org/abs/2507.22062); the first MetaCLIP is of CLIP's own type."""

    config_class = MetaClip2VisionConfig
    model_class = MetaClip2VisionModel
    converts_to_hf = ()


class ChineseCLIPVisionTower(CLIPVisionTower):
    """Chinese CLIP (https://arxiv.org/abs/2211.01335)."""

    config_class = ChineseCLIPVisionConfig
    model_class = ChineseCLIPVisionModel
    processor_class = ChineseCLIPImageProcessorPil
    converts_to_hf = ()
