"""The RADIO vision tower (https://arxiv.org/abs/2312.06709), distilled from CLIP, SigLIP, DINOv2 and SAM."""

from __future__ import annotations

from typing import Any

from transformers import CLIPImageProcessorPil, RadioConfig, RadioModel

from llava.model.multimodal_encoder.base import VisionTower


class RadioVisionTower(VisionTower):
    """A vision transformer that normalises pixels from 0 to 1 by itself."""

    config_class = RadioConfig
    model_class = RadioModel
    processor_class = CLIPImageProcessorPil
    before_layers = ("input_conditioner", "embeddings")
    layers = "encoder.layer"
    layer_arguments = {}  # older layers take no mask
    resizing = "free"

    @property
    def prefix_tokens(self) -> int:
        """Class tokens and registers."""
        return self.config.num_summary_tokens

    def _build_image_processor(self) -> Any:
        processor = super()._build_image_processor()
        processor.do_normalize = False  # the model does
        return processor
