"""Plain vision transformers as towers: ViT, DeiT, I-JEPA."""

from __future__ import annotations

from transformers import (
    DeiTConfig,
    DeiTImageProcessorPil,
    DeiTModel,
    IJepaConfig,
    IJepaModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from llava.model.multimodal_encoder.base import VisionTower


class ViTVisionTower(VisionTower):
    """A vision transformer (https://arxiv.org/abs/2010.11929), its pooler is loaded and not run."""

    config_class = ViTConfig
    model_class = ViTModel
    processor_class = ViTImageProcessorPil
    prefix_tokens = 1  # CLS
    layers = "layers"
    resizing = "argument"


class DeiTVisionTower(ViTVisionTower):
    """DeiT (https://arxiv.org/abs/2012.12877): CLS and a distillation token in front of the patches."""

    config_class = DeiTConfig
    model_class = DeiTModel
    processor_class = DeiTImageProcessorPil
    prefix_tokens = 2


class IJepaVisionTower(ViTVisionTower):
    """I-JEPA (https://arxiv.org/abs/2301.08243): patches alone."""

    config_class = IJepaConfig
    model_class = IJepaModel
    prefix_tokens = 0
