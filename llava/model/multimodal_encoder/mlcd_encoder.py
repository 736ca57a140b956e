"""The MLCD vision tower (https://arxiv.org/abs/2407.17331): CLIP's layers with rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, MLCDVisionConfig, MLCDVisionModel

from llava.model.multimodal_encoder.base import VisionTower


class MLCDVisionTower(VisionTower):
    """A vision transformer whose layers get the angles of each patch's row and column."""

    config_class = MLCDVisionConfig
    model_class = MLCDVisionModel
    processor_class = CLIPImageProcessorPil
    prefix_tokens = 1  # CLS
    before_layers = ("embeddings", "pre_layrnorm")
    beside_layers = ("class_pos_emb",)  # the angle of the class token
    resizing = "free"

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Return what the first layer gets, (N, 1 + patches, C), and the angles, (1 + patches, D) each."""
        hidden, arguments = super().embed(pixel_values)
        model: Any = self.vision_tower.vision_model
        side = torch.arange(pixel_values.shape[-1] // model.config.patch_size, device=hidden.device)
        cos, sin = model.vision_rotary_embedding(hidden, torch.cartesian_prod(side, side))  # row, column
        of_class = torch.cat([model.class_pos_emb, model.class_pos_emb], dim=-1)
        angles = (torch.cat([of_class.cos(), cos]), torch.cat([of_class.sin(), sin]))
        return hidden, {**arguments, "position_embeddings": angles}
