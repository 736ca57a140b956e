"""What every vision tower shares: pixels to the features of one hidden layer, loading, sizes, dtypes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from llava.model.checkpoints import loading
from llava.model.checkpoints.faults import check_loading
from llava.model.checkpoints.files import CheckpointError, first_line, is_tower_key, read_config
from llava.model.checkpoints.on_demand import LayersOnDemand
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.tile import TileFeatures
from llava.model.multimodal_encoder.image_processor import tower_processor
from llava.model.multimodal_encoder.published import tower_config
from llava.model.multimodal_encoder.vision_model import (
    LayersBehind,
    VisionModelHolder,
    inside_tower,
    layers_needed,
    names_with,
)
from llava.protocols import DeviceMap, ImageProcessor
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from typing_extensions import Self

logger = logging.getLogger(__name__)


class VisionTower(nn.Module):
    """Base of the vision towers; a subclass names the classes and modules of transformers it stands on.

    With `delay_load` only the config is read, until `load_model()` or, for checkpoints that bring tower
    weights (`unfreeze_mm_vision_tower`), the checkpoint itself fills the model that was built from the
    config.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[type]  # the one on PIL: torchvision resizes a little differently
    before_layers: ClassVar[tuple[str, ...]] = ("embeddings",)  # modules that pixels pass one after another
    # other image sizes than the config's: refused, by the argument interpolate_pos_encoding, or free
    resizing: ClassVar[Literal["none", "argument", "free"]] = "none"
    size_fields: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "num_hidden_layers",
        "image_size",
        "patch_size",
    )  # of the config, checked to be whole numbers
    layers: ClassVar[str] = "encoder.layers"  # where the layers are, which are run as far as they are needed
    layer_arguments: ClassVar[Mapping[str, Any]] = {"attention_mask": None}  # of each layer's forward
    beside_layers: ClassVar[tuple[str, ...]] = ()  # parameters outside of those modules that layers need
    unused: ClassVar[tuple[str, ...]] = ()  # weights in there that no image reaches, as of a masked patch
    omitted_layers = 0  # behind the selected one, that the checkpoint does not store
    unread: tuple[str, ...] = ()  # weights of layers behind the selected one, read when they are asked for
    converts_to_hf: ClassVar[tuple[str, ...]] = ()  # transformers' LLaVAs with which conversion is proven

    def __init__(self, vision_tower: str, args: object, delay_load: bool = False) -> None:
        super().__init__()
        settings = MultimodalConfig.of(args)
        self.is_loaded = False
        self.not_of_the_tower: tuple[str, ...] = ()  # weights that its files hold beside it
        self.vision_tower_name = vision_tower
        self.select_layer = settings.select_layer
        self.select_feature = settings.select_feature
        self.resolution = settings.resolution  # pixels, None: those of the tower's config
        if not delay_load:
            self.load_model()
        elif settings.tower_in_checkpoint:
            self.vision_tower = VisionModelHolder(self.model_class(self._read_config()))
            self.vision_tower.requires_grad_(False)
            self.is_loaded = True
        else:
            self.cfg_only = self._read_config()

    # ---------------------------------------------------------------------------------------------- loading

    def _read_config(self) -> Any:
        content = tower_config(self.vision_tower_name)
        content = content.get("vision_config") or content  # of a model with text and vision, the vision half
        place = f"{self.vision_tower_name}/config.json"
        try:
            config = self.config_class.from_dict(content)
        except Exception as error:  # transformers checks types with exceptions of its own
            raise CheckpointError(f"{place} is no config of a vision tower: {first_line(error)}") from error
        for name in self.size_fields:
            value = getattr(config, name)
            if isinstance(value, Sequence) and len(set(value)) == 1:  # height and width
                value = value[0]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CheckpointError(f"{place}: {name} is {value!r}; expected a whole number above 0.")
        self._check_edges(config, place)
        return config

    def _check_edges(self, config: PreTrainedConfig, place: str) -> None:
        """Raise for sizes of image and patch that do not go together."""
        edge, patch = self.config_edge(config), self.patch_edge(config)
        if patch > edge:
            raise CheckpointError(f"{place}: patch_size is {patch}, more than image_size {edge}.")
        if self.resolution in (None, edge):
            return
        if self.resizing == "none":
            raise UserError(
                f"mm_vision_resolution is {self.resolution}, and the vision tower {self.vision_tower_name} "
                f"takes images of {edge} pixels only; leave the setting out."
            )
        if self.resolution % patch:
            raise UserError(
                f"mm_vision_resolution is {self.resolution}; expected a multiple of {patch}, the pixels of a "
                f"patch of the vision tower {self.vision_tower_name}."
            )

    def load_model(self, device_map: DeviceMap = None, *, whole: bool = True) -> None:
        """Load the tower from its own files, in float32 and frozen; a second call does nothing.

        whole: False leaves out the layers behind the selected one; they are read when something asks for
        them. Raises CheckpointError when the files are missing or damaged.
        """
        if self.is_loaded:
            logger.debug("%s is already loaded; load_model() does nothing", self.vision_tower_name)
            return
        read_config(self.vision_tower_name)  # not what is known of a published tower: its files are needed
        self._read_config()  # a clear error before transformers' own
        # "auto" would spread a tower over devices: it stays whole, and moves with .to()
        device_map = None if device_map == "auto" else device_map
        self.omitted_layers = 0
        model, info = loading.from_pretrained(
            self.model_class,
            self.vision_tower_name,
            cut=None if whole else self._cut,
            dtype=torch.float32,
            device_map=device_map,
        )
        left_over, info["unexpected_keys"] = info["unexpected_keys"], ()
        check_loading(info, self.vision_tower_name, tower_is_built=True, projector_later=False)
        self.vision_tower = VisionModelHolder(model)
        self.vision_tower.requires_grad_(False)
        self.is_loaded = True
        self.unread = tuple(self._cut_off(left_over))
        self._defer(self.omitted_layers, self.vision_tower_name, lambda name: True)
        self.not_of_the_tower = tuple(set(left_over).difference(self.unread))  # the text half of a whole CLIP

    def forget_weights(self) -> None:
        """Return to the state before loading, for a checkpoint that turned out to bring no tower weights."""
        self.is_loaded = False
        self.omitted_layers, self.unread = 0, ()
        self.cfg_only = self.vision_tower.config
        del self.vision_tower

    def cut_stored(self) -> None:
        """Leave out the layers behind the selected one of a tower that a checkpoint is about to fill."""
        self._cut(self.vision_tower.vision_model)

    def defer_stored(self, source: str, left_over: Iterable[str]) -> tuple[str, ...]:
        """Let layers that were left out be read from the checkpoint `source` when something asks for them.

        left_over: names of its weights that have no place. Returns those of such layers.
        """
        found = self._cut_off(left_over)
        first, stored = len(self._layers()), set(found.values())
        count = next(n for n in itertools.count() if first + n not in stored)
        self.unread = tuple(name for name, index in found.items() if index < first + count)
        self._defer(count, source, is_tower_key, self.config)
        return self.unread

    def _cut(self, model: nn.Module) -> None:
        layers = self._layers(model)
        kept = max(1, layers_needed(self.select_layer, len(layers)))  # the others come like the first
        self.omitted_layers = len(layers) - kept
        del layers[kept:]

    def _cut_off(self, names: Iterable[str]) -> dict[str, int]:
        """Pick the weights of layers that were left out: name -> index of the layer."""
        first = len(self._layers())
        left_out = {str(index): index for index in range(first, first + self.omitted_layers)}
        found = {}
        for name in sorted(names):
            inside = inside_tower(name)
            index = inside.removeprefix(f"{self.layers}.").partition(".")[0]
            if inside.startswith(f"{self.layers}.") and index in left_out:
                found[name] = left_out[index]
        return found

    def _defer(
        self,
        count: int,
        source: str,
        wanted: Callable[[str], bool],
        config: PreTrainedConfig | None = None,
    ) -> None:
        """Let so many more layers come from weights in `source` when something asks for them."""
        if count:
            numbers = range(len(self._layers()), len(self._layers()) + count)
            names = names_with(numbers, source, wanted)
            read = LayersBehind.at(self.model_class, source, self.layers, names, config)
            layers = LayersOnDemand(self._layers(), count, read, read.inside)
            self.vision_tower.vision_model.set_submodule(self.layers, layers)
            self.omitted_layers -= count

    def _layers(self, model: nn.Module | None = None) -> Any:
        return (model or self.vision_tower.vision_model).get_submodule(self.layers)

    def _check_loaded(self) -> None:
        if not self.is_loaded:
            raise UserError(
                f"The vision tower {self.vision_tower_name} is not loaded; call load_model() first."
            )

    # --------------------------------------------------------------------------------------- image processor

    @property
    def image_processor(self) -> Any:
        """The tower's image processor; PIL backend, so that torchvision never changes results."""
        if not hasattr(self, "_image_processor"):
            self._image_processor = self._build_image_processor()
        return self._image_processor

    @image_processor.setter
    def image_processor(self, processor: ImageProcessor) -> None:
        self._image_processor = processor

    def _build_image_processor(self) -> Any:
        return tower_processor(self.vision_tower_name, self.processor_class, self.tile_size, self.resolution)

    # ----------------------------------------------------------------------------------------------- features

    def feature_select(self, image_forward_outs: BaseModelOutput) -> torch.Tensor:
        """Pick the selected layer and feature from the vision model's outputs with `hidden_states`."""
        return self._select_feature(image_forward_outs.hidden_states[self.select_layer])

    def _select_feature(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.select_feature == "patch":
            return hidden[:, self.prefix_tokens :]  # (N, patches, C)
        if self.select_feature == "cls_patch":
            return hidden  # (N, prefix + patches, C)
        raise UserError(
            f"mm_vision_select_feature is {self.select_feature!r}; expected 'patch' or 'cls_patch'."
        )

    def hidden_state(self, pixel_values: torch.Tensor, index: int) -> torch.Tensor:
        """Return `hidden_states[index]` of the vision model, (N, prefix + patches, C).

        Index 0 is what the first layer gets, -1 the output of the last (before any norm behind it). Layers
        behind the index are not run.
        """
        hidden, arguments = self.embed(pixel_values)
        for layer in self.layers_before(index):
            hidden = layer(hidden, **arguments)
        return hidden

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Return what the first layer gets, (N, prefix + patches, C), and the keywords of every layer."""
        first, *others = self._before_layers()
        if self.resizing == "argument" and pixel_values.shape[-1] != self.config_edge(self.config):
            hidden = first(pixel_values, interpolate_pos_encoding=True)
        else:
            hidden = first(pixel_values)
        for module in others:
            hidden = module(hidden)
        return hidden, self.layer_arguments

    def _before_layers(self) -> list[nn.Module]:
        model = self.vision_tower.vision_model
        return [model.get_submodule(name) for name in self.before_layers]

    def layers_before(self, index: int) -> Iterable[nn.Module]:
        """Return the layers that `hidden_states[index]` of the vision model has passed."""
        layers: nn.ModuleList = self._layers()
        total = len(layers) + self.omitted_layers
        needed = layers_needed(index, total)
        if needed > len(layers):
            raise UserError(
                f"mm_vision_select_layer is {index}, which needs {needed} layers, and the checkpoint stores "
                f"{len(layers)} of the {total} of the vision tower {self.vision_tower_name}; expected "
                f"{len(layers) - total - 1}, as it was trained."
            )
        return layers[:needed]

    def omit_unneeded(self, missing: Iterable[str]) -> bool:
        """Remove parts that the selected features do not need, for a checkpoint that does not store them.

        missing: names of the weights that it lacks, in this module. LLaVA-NeXT's SigLIP towers are without
        their last layer and their pooling head. Returns False, and removes nothing, if others are missing.
        """
        model = self.vision_tower.vision_model
        layers: nn.ModuleList = model.get_submodule(self.layers)
        needed = len(list(self.layers_before(self.select_layer)))
        behind, others = len(layers), set()
        for name in missing:
            name = name.removeprefix("vision_tower.").removeprefix("vision_model.")
            place = name.removeprefix(f"{self.layers}.").partition(".")[0]
            if name.startswith(f"{self.layers}.") and int(place) >= needed:
                behind = min(behind, int(place))
            elif name.startswith((f"{self.layers}.", *self.before_layers, *self.beside_layers)):
                return False
            else:
                others.add(name.partition(".")[0])
        self.omitted_layers += len(layers) - behind
        del layers[behind:]
        for name in others:
            setattr(model, name, nn.Identity())  # which passes on what it gets, as in LLaVA-NeXT
        return True

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch (N, 3, H, W) in the tower's dtype: (N, P, C)."""
        pixels = images.to(device=self.device, dtype=self.dtype)
        return self._select_feature(self.hidden_state(pixels, self.select_layer))

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
        for module in (*self._before_layers(), *self.layers_before(self.select_layer)):
            module.requires_grad_(True)
        for name in self.beside_layers:
            self.vision_tower.vision_model.get_parameter(name).requires_grad_(True)
        for name in self.unused:
            self.vision_tower.vision_model.get_parameter(name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the model that this is a part of; a frozen vision model is never training.

        A batch norm would take statistics of the images at hand, and write them over those it was trained
        with. (CLIP has nothing that depends on the mode.)
        """
        super().train(mode)
        if mode and self.is_loaded and not self._is_trainable():
            self.vision_tower.eval()
        return self

    def _is_trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vision_tower.parameters())

    # -------------------------------------------------------------------------------------------------- sizes

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches: CLS, registers. A subclass sets a number, or asks its config."""
        return 0

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
    def config(self) -> Any:
        """The vision model's config, also before loading."""
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def hidden_size(self) -> int:
        """Width C of the features."""
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers of the vision model."""
        return self.config.num_hidden_layers

    @property
    def tile_size(self) -> int:
        """Edge in pixels of what the vision model takes at once."""
        return self.resolution or self.config_edge(self.config)

    def config_edge(self, config: PreTrainedConfig) -> int:
        """Edge in pixels of the images that a config of this kind is made for."""
        return _edge(config.image_size)

    def patch_edge(self, config: PreTrainedConfig) -> int:
        """Edge in pixels of a patch."""
        return _edge(config.patch_size)

    @property
    def input_size(self) -> int:
        """Edge in pixels of the images that its processor makes: a tile, unless it sees several scales."""
        return self.tile_size

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one edge."""
        return self.tile_size // self.patch_edge(self.config)

    @property
    def num_patches(self) -> int:
        """Patches of one tile."""
        return self.num_patches_per_side**2

    @property
    def extra_tokens(self) -> int:
        """Features of a tile beside its patches: the tokens in front, where "cls_patch" keeps them."""
        return self.prefix_tokens if self.select_feature == "cls_patch" else 0

    @property
    def tile_features(self) -> TileFeatures:
        """The features of one tile, as a projector gets them."""
        return TileFeatures(self.num_patches_per_side, self.extra_tokens)

    @property
    def tokens_per_tile(self) -> int:
        """Features P of one tile."""
        return self.tile_features.count


def _edge(size: int | Sequence[int]) -> int:
    """Return the edge of a square that a config gives as a number, or as height and width."""
    return size if isinstance(size, int) else size[0]
