"""The InternViT vision tower of InternVL (https://arxiv.org/abs/2312.14238), in transformers' layout."""

from __future__ import annotations

from transformers import GotOcr2ImageProcessorPil, InternVLVisionConfig, InternVLVisionModel

from llava.model.multimodal_encoder.base import VisionTower


class InternVisionTower(VisionTower):
    """A vision transformer whose config gives sizes as pairs; pixel shuffle is a projector's."""

    config_class = InternVLVisionConfig
    model_class = InternVLVisionModel
    processor_class = GotOcr2ImageProcessorPil
    prefix_tokens = 1  # CLS
    layers = "encoder.layer"
    layer_arguments = {}
    resizing = "free"
