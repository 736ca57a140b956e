"""CLIP vision tower: pixels to the patch features of one hidden layer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.checkpoints import loading
from llava.model.checkpoints.files import find_file, read_config
from llava.model.multimodal.config import MultimodalConfig
from llava.utils import UserError

logger = logging.getLogger(__name__)


class VisionModelHolder(nn.Module):
    """Holds the CLIP model as `vision_model`.

    transformers 5 dropped that level of `CLIPVisionModel`; LLaVA checkpoints have it in every tower key.
    """

    def __init__(self, vision_model: CLIPVisionModel) -> None:
        super().__init__()
        self.vision_model = vision_model

    @property
    def config(self) -> CLIPVisionConfig:
        """The CLIP vision config."""
        return self.vision_model.config

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Run the whole CLIP model, as `CLIPVisionModel` does."""
        return self.vision_model(pixel_values, **kwargs)

    def hidden_state(self, pixel_values: torch.Tensor, index: int) -> torch.Tensor:
        """Return `hidden_states[index]` of CLIP, (N, 1 + patches, C), without running the layers behind it.

        Index 0 is the embedding, -1 the output of the last layer (before `post_layernorm`).
        """
        model: Any = self.vision_model
        hidden = model.pre_layrnorm(model.embeddings(pixel_values))  # (N, 1 + patches, C)
        for layer in self.layers_before(index):
            hidden = layer(hidden, attention_mask=None)
        return hidden

    def layers_before(self, index: int) -> Any:
        """Return the layers that `hidden_states[index]` of CLIP has passed."""
        model: Any = self.vision_model
        layers = model.encoder.layers
        count = index if index >= 0 else len(layers) + 1 + index
        if not 0 <= count <= len(layers):
            raise UserError(
                f"mm_vision_select_layer is {index}; this tower has hidden states {-len(layers) - 1} to "
                f"{len(layers)}."
            )
        return layers[:count]


class CLIPVisionTower(nn.Module):
    """Vision tower of LLaVA 1, 1.5 and 1.6.

    With `delay_load` only the config is read, until `load_model()` or, for checkpoints that bring tower
    weights (`unfreeze_mm_vision_tower`), the checkpoint itself fills the model that was built from the
    config.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        settings = MultimodalConfig.of(args)
        self.is_loaded = False
        self.vision_tower_name = vision_tower
        self.select_layer = settings.select_layer
        self.select_feature = settings.select_feature
        if not delay_load:
            self.load_model()
        elif settings.tower_in_checkpoint:
            self.vision_tower = VisionModelHolder(CLIPVisionModel(self._read_config()))
            self.vision_tower.requires_grad_(False)
            self.is_loaded = True
        else:
            self.cfg_only = self._read_config()

    def _read_config(self) -> CLIPVisionConfig:
        config = read_config(self.vision_tower_name)
        config = config.get("vision_config") or config
        return CLIPVisionConfig.from_dict(config)

    def load_model(self, device_map: Any = None) -> None:
        """Load the tower from its own files, in float32 and frozen; a second call does nothing.

        Raises CheckpointError when the files are missing or damaged.
        """
        if self.is_loaded:
            logger.debug("%s is already loaded; load_model() does nothing", self.vision_tower_name)
            return
        read_config(self.vision_tower_name)  # a clear error before transformers' own
        # "auto" would spread a tower over devices: it stays whole, and moves with .to()
        device_map = None if device_map == "auto" else device_map
        model, info = loading.from_pretrained(
            CLIPVisionModel, self.vision_tower_name, dtype=torch.float32, device_map=device_map
        )
        info["unexpected_keys"] = ()  # the text half of a whole CLIP
        loading.check_loading(info, self.vision_tower_name, tower_is_built=True, projector_later=False)
        self.vision_tower = VisionModelHolder(model)
        self.vision_tower.requires_grad_(False)
        self.is_loaded = True

    @property
    def image_processor(self) -> Any:
        """The tower's image processor; PIL backend, so that torchvision never changes results."""
        if not hasattr(self, "_image_processor"):
            self._image_processor = self._build_image_processor()
        return self._image_processor

    @image_processor.setter
    def image_processor(self, processor: Any) -> None:
        self._image_processor = processor

    def _build_image_processor(self) -> Any:
        from transformers import CLIPImageProcessorPil

        if find_file(self.vision_tower_name, "preprocessor_config.json"):
            return CLIPImageProcessorPil.from_pretrained(self.vision_tower_name)
        edge = self.config.image_size
        logger.warning(
            "%s has no preprocessor_config.json; pictures are processed as for CLIP at %d pixels",
            self.vision_tower_name,
            edge,
        )
        return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})

    def feature_select(self, image_forward_outs: Any) -> torch.Tensor:
        """Pick the selected layer and feature from CLIP outputs with `hidden_states`."""
        return self._select_feature(image_forward_outs.hidden_states[self.select_layer])

    def _select_feature(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.select_feature == "patch":
            return hidden[:, 1:]  # (N, patches, C)
        if self.select_feature == "cls_patch":
            return hidden  # (N, 1 + patches, C)
        raise UserError(
            f"mm_vision_select_feature is {self.select_feature!r}; expected 'patch' or 'cls_patch'."
        )

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch (N, 3, H, W) in the tower's dtype: (N, P, C)."""
        pixels = images.to(device=self.device, dtype=self.dtype)
        return self._select_feature(self.vision_tower.hidden_state(pixels, self.select_layer))

    def forward(self, images: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Return features (N, P, C) of images (N, 3, H, W), in the images' dtype.

        A list of (3, H, W) gives a list of (1, P, C). Gradients flow only where tower parameters require
        them.
        """
        self._check_loaded()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._is_trainable()):
            if torch.is_tensor(images):
                return self._features(images).to(images.dtype)
            batch = torch.stack(list(images))  # one size only: every tower has a fixed input size
            features = self._features(batch)
            return [row.to(image.dtype) for row, image in zip(features.split(1), images, strict=True)]

    def unfreeze(self) -> None:
        """Make trainable what the selected features depend on.

        The layers behind stay frozen: they never get a gradient, which data parallel training waits for, and
        weight decay would shrink them.
        """
        self._check_loaded()
        model = self.vision_tower.vision_model
        used = (model.embeddings, model.pre_layrnorm, *self.vision_tower.layers_before(self.select_layer))
        for module in used:
            module.requires_grad_(True)

    def _is_trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vision_tower.parameters())

    def _check_loaded(self) -> None:
        if not self.is_loaded:
            raise UserError(
                f"The vision tower {self.vision_tower_name} is not loaded; call load_model() first."
            )

    @property
    def dummy_feature(self) -> torch.Tensor:
        """A zero feature (1, C)."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    def _first_parameter(self) -> torch.Tensor:
        self._check_loaded()
        return next(self.vision_tower.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tower's weights."""
        return self._first_parameter().dtype

    @property
    def device(self) -> torch.device:
        """Device of the tower's weights."""
        return self._first_parameter().device

    @property
    def config(self) -> CLIPVisionConfig:
        """CLIP's vision config, also before loading."""
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def hidden_size(self) -> int:
        """Width C of the features."""
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one edge."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.num_patches_per_side**2


def __getattr__(name: str) -> Any:
    """Keep `CLIPVisionTowerS2` importable from here, where the reference has it."""
    if name == "CLIPVisionTowerS2":
        from llava.model.multimodal_encoder.s2 import CLIPVisionTowerS2

        return CLIPVisionTowerS2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
