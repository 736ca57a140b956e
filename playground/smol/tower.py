"""EfficientNet-Lite as a vision tower; importing this registers it. Makes its folder from published weights.

python -m playground.smol.tower FILE.pth FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, PreTrainedConfig

from llava.atomic import atomic_folder
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.registry import register_tower
from llava.model.multimodal_encoder.vision_model import layers_needed
from llava.utils import UserError, run_program
from playground.smol.efficientnet import EfficientNetLiteConfig, EfficientNetLiteModel, from_published


class EfficientNetLiteVisionTower(VisionTower):
    """A convolutional tower: the selected "layer" is a stage, with its own width and grid.

    Hidden state 0 is the stem, -2 the last stage (320 channels, patches of 32 pixels), -1 the last
    convolution.
    """

    config_class = EfficientNetLiteConfig
    model_class = EfficientNetLiteModel
    processor_class = CLIPImageProcessorPil
    before_layers = ("stem",)
    layers = "layers"
    layer_arguments = {}
    resizing = "free"
    size_fields = ("image_size", "stem_size")

    def _select_feature(self, hidden: torch.Tensor) -> torch.Tensor:
        return super()._select_feature(hidden.flatten(2).transpose(1, 2))  # (N, C, h, w) to (N, h * w, C)

    def _selected(self, config: EfficientNetLiteConfig) -> int:
        return layers_needed(self.select_layer, config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Channels of the selected hidden state."""
        return self.config.width(self._selected(self.config))

    def patch_edge(self, config: PreTrainedConfig) -> int:
        """Pixels that one position of the selected hidden state stands for."""
        return config.edge(self._selected(config))


register_tower(EfficientNetLiteVisionTower, EfficientNetLiteConfig.model_type)


def make_folder(file: Path, folder: Path) -> None:
    """Write the tower's folder: config, weights, and how images are read. Raises UserError."""
    config = EfficientNetLiteConfig()
    model = EfficientNetLiteModel(config).eval()
    try:
        published = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(from_published(published, config))
    except (KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{file} does not hold the weights of EfficientNet-Lite0: {error}") from error
    edge = {"height": config.image_size, "width": config.image_size}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": config.image_size},
        crop_size=edge,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    with atomic_folder(folder) as scratch:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)


def classify(folder: Path, images: list) -> torch.Tensor:
    """Return the logits (N, 1000) of ImageNet's classes for PIL images."""
    model = EfficientNetLiteModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor.preprocess([one.convert("RGB") for one in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixels)


def main() -> None:
    """Convert the weights that the command line names."""
    make_folder(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"  {sys.argv[2]}: EfficientNet-Lite0", flush=True)


if __name__ == "__main__":
    run_program(main)
