"""The CLIP vision tower of LLaVA 1, 1.5 and 1.6, and the same at several scales."""

from __future__ import annotations

from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.s2 import multi_scale


class CLIPVisionTower(VisionTower):
    """A CLIP vision transformer; a whole CLIP serves as well, its text half is left out."""

    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    processor_class = CLIPImageProcessorPil
    prefix_tokens = 1  # CLS
    before_layers = ("embeddings", "pre_layrnorm")  # transformers' spelling
    converts_to_hf = True


CLIPVisionTowerS2 = multi_scale(CLIPVisionTower)
