"""The AIMv2 vision tower (https://arxiv.org/abs/2411.14402)."""

from __future__ import annotations

from transformers import Aimv2VisionConfig, Aimv2VisionModel, CLIPImageProcessorPil

from llava.model.multimodal_encoder.base import VisionTower


class Aimv2VisionTower(VisionTower):
    """A vision transformer without a class token; its pooling head is loaded and saved, but not run."""

    config_class = Aimv2VisionConfig
    model_class = Aimv2VisionModel
    processor_class = CLIPImageProcessorPil
