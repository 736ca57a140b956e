"""The SigLIP vision towers; fixed-size SigLIP 2 checkpoints are of SigLIP's type, the others are NaFlex."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import (
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.model.multimodal_encoder.base import VisionTower

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class SiglipVisionTower(VisionTower):
    """A SigLIP vision transformer: no CLS token, no norm in front of its layers.

    Its pooling head is loaded and saved, but not run.
    """

    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel
    processor_class = SiglipImageProcessorPil
    resizing = "argument"
    converts_to_hf = ("llava_onevision",)


class NaflexVisionTower(VisionTower):
    """SigLIP 2 of any size (NaFlex, https://arxiv.org/abs/2502.14786), given square images of one size."""

    config_class = Siglip2VisionConfig
    model_class = Siglip2VisionModel
    processor_class = SiglipImageProcessorPil
    resizing = "free"
    size_fields = ("hidden_size", "num_hidden_layers", "num_patches", "patch_size")

    def config_edge(self, config: PreTrainedConfig) -> int:
        """Edge in pixels of a square of as many patches as the model has positions."""
        return isqrt(config.num_patches) * self.patch_edge(config)

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Return what the first layer gets, (N, patches, C): the model takes patches, a row each."""
        patch = self.patch_edge(self.config)
        n, side = len(pixel_values), pixel_values.shape[-1] // patch
        rows = F.pixel_unshuffle(pixel_values, patch)  # (N, 3 * patch * patch, side, side)
        rows = rows.reshape(n, 3, patch * patch, side * side).permute(0, 3, 2, 1).flatten(2)  # pixel, channel
        shapes = torch.tensor([[side, side]] * n, device=pixel_values.device)
        return self._before_layers()[0](rows, shapes), self.layer_arguments
