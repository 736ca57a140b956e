"""The DINO vision towers: DINOv2 without and with registers, DINOv3, and TIPS v2, built like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Tipsv2VisionConfig,
    Tipsv2VisionModel,
    ViTImageProcessorPil,
)

from llava.model.multimodal_encoder.base import VisionTower


class Dinov2VisionTower(VisionTower):
    """DINOv2 (https://arxiv.org/abs/2304.07193), a vision transformer that learned without texts."""

    config_class = Dinov2Config
    model_class = Dinov2Model
    processor_class = BitImageProcessorPil
    layers = "encoder.layer"
    layer_arguments = {}  # older layers take no mask
    resizing = "free"
    unused = ("embeddings.mask_token",)

    @property
    def prefix_tokens(self) -> int:
        """CLS."""
        return 1


class Dinov2WithRegistersVisionTower(Dinov2VisionTower):
    """DINOv2 with register tokens (https://arxiv.org/abs/2309.16588) between CLS and the patches."""

    config_class = Dinov2WithRegistersConfig
    model_class = Dinov2WithRegistersModel

    @property
    def prefix_tokens(self) -> int:
        """CLS and the registers."""
        return 1 + self.config.num_register_tokens


class Tipsv2VisionTower(Dinov2WithRegistersVisionTower):
    """TIPS v2, with a second class token in the place of registers; pixels from 0 to 1."""

    config_class = Tipsv2VisionConfig
    model_class = Tipsv2VisionModel
    processor_class = ViTImageProcessorPil


class DINOv3VisionTower(Dinov2WithRegistersVisionTower):
    """DINOv3 (https://arxiv.org/abs/2508.10104), with rotary positions.

    transformers processes its images with torchvision alone; here PIL resizes them, as for the others.
    """

    config_class = DINOv3ViTConfig
    model_class = DINOv3ViTModel
    processor_class = ViTImageProcessorPil
    layers = "model.layer"

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Return what the first layer gets, (N, prefix + patches, C), and the angles of the patches."""
        hidden, arguments = super().embed(pixel_values)
        rope = self.vision_tower.vision_model.rope_embeddings
        # in training mode the model shifts and stretches positions at random, as for its own training
        angles = rope.eval()(pixel_values)
        return hidden, {**arguments, "position_embeddings": angles}
