"""ConvNeXt vision towers (https://arxiv.org/abs/2201.03545): hidden states are those of their stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import (
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2Model,
)

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.vision_model import layers_needed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class ConvNextVisionTower(VisionTower):
    """A convolutional tower: the selected "layer" is a stage, with its own width and patch size.

    Hidden state 0 is the stem (patches of `patch_size` pixels), 1 the first stage on the same grid; each
    later stage halves the grid.
    """

    config_class = ConvNextConfig
    model_class = ConvNextModel
    processor_class = ConvNextImageProcessorPil
    layers = "encoder.stages"
    layer_arguments = {}
    resizing = "free"
    size_fields = ("image_size", "patch_size")

    def _select_feature(self, hidden: torch.Tensor) -> torch.Tensor:
        return super()._select_feature(hidden.flatten(2).transpose(1, 2))  # (N, C, h, w) to (N, h * w, C)

    @property
    def _stage(self) -> int:
        """The selected hidden state, counted from the stem."""
        return layers_needed(self.select_layer, self.num_layers)

    @property
    def hidden_size(self) -> int:
        """Channels of the selected stage."""
        return self.config.hidden_sizes[max(0, self._stage - 1)]

    @property
    def num_layers(self) -> int:
        """Stages of the model."""
        return len(self.config.hidden_sizes)

    def patch_edge(self, config: PreTrainedConfig) -> int:
        """Pixels that one position of the selected stage stands for."""
        stage = layers_needed(self.select_layer, len(config.hidden_sizes))
        return config.patch_size * 2 ** max(0, stage - 1)


class ConvNextV2VisionTower(ConvNextVisionTower):
    """ConvNeXt V2 (https://arxiv.org/abs/2301.00808)."""

    config_class = ConvNextV2Config
    model_class = ConvNextV2Model
