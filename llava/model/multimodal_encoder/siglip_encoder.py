"""The SigLIP vision tower; fixed-size SigLIP 2 checkpoints are of the same type."""

from __future__ import annotations

from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from llava.model.multimodal_encoder.base import VisionTower


class SiglipVisionTower(VisionTower):
    """A SigLIP vision transformer: no CLS token, no norm in front of its layers.

    Its pooling head is loaded and saved, but not run.
    """

    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel
    processor_class = SiglipImageProcessorPil
