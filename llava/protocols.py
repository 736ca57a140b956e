"""What functions ask of tokenizers, image processors, towers and models: Protocols, without heavy imports."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import GenerationConfig, PreTrainedConfig

# where a model goes: a name, a GPU's number, a device, or a place for each part
DeviceMap: TypeAlias = "str | int | torch.device | Mapping[str, str | int | torch.device] | None"


class Tokenizer(Protocol):
    """A tokenizer of transformers: text to token ids, and back."""

    chat_template: str | None
    padding_side: str
    pad_token: str | None

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text."""

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""

    @property
    def unk_token(self) -> str | None:
        """The token for what has no other."""

    def __len__(self) -> int: ...

    def __call__(self, text: str) -> Any: ...

    def add_tokens(self, new_tokens: list[str], special_tokens: bool = False) -> int:
        """Add tokens; returns how many are new."""

    def add_special_tokens(self, special_tokens_dict: dict[str, str]) -> int:
        """Add tokens with a meaning of their own; returns how many are new."""

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """Return the id of a token."""

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write the tokenizer's files into a folder."""


class ImageProcessor(Protocol):
    """A vision tower's image processor of transformers."""

    size: dict[str, int]
    crop_size: dict[str, int] | None
    resample: int
    do_center_crop: bool | None
    rescale_factor: float
    image_mean: list[float]
    image_std: list[float]

    def preprocess(self, images: Any, **settings: Any) -> Mapping[str, Any]:
        """Return the pixel values of images, among others."""


class Tower(Protocol):
    """A vision tower as the loader uses it; `llava.model.multimodal_encoder` has the classes."""

    is_loaded: bool
    vision_tower_name: str
    vision_tower: nn.Module

    @property
    def image_processor(self) -> Any:
        """What makes pixel values of images."""

    def omit_unneeded(self, missing: Iterable[str]) -> bool:
        """Remove parts that no feature needs and that are not stored; tells whether it could."""

    def cut_stored(self) -> None:
        """Leave out the layers behind the selected one of a tower that a checkpoint is about to fill."""

    def defer_stored(self, source: str, left_over: Iterable[str]) -> tuple[str, ...]:
        """Let layers that were left out be read from a checkpoint later; returns their weights' names."""

    def load_model(self, device_map: DeviceMap = None, *, whole: bool = True) -> None:
        """Load the tower from its own files, whole or without the layers behind the selected one."""


class CausalModel(Protocol):
    """A causal LLM of transformers, with or without a tower."""

    config: PreTrainedConfig
    generation_config: GenerationConfig | None

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""

    def get_input_embeddings(self) -> Any:
        """Return the layer that embeds token ids."""

    def get_output_embeddings(self) -> Any:
        """Return the head."""

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Any:
        """Give embeddings and head that many rows."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield its modules by name."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield its weights by name."""

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Return its weights and buffers by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Fill weights by name."""


class LlavaModel(CausalModel, Protocol):
    """A LLaVA: the LLM with tower and projector."""

    def get_model(self) -> Any:
        """Return the LLM without its head, which holds tower and projector."""

    def get_vision_tower(self) -> Any:
        """Return the tower, None for a model without one."""


class VisionArguments(Protocol):
    """Arguments that name a tower; `VisionSettings.of` reads what else they say of tower and projector."""

    vision_tower: str | None
    mm_vision_select_layer: int
    mm_vision_select_feature: str


class ImageTokenArguments(Protocol):
    """Arguments that say which image tokens a tokenizer gets, and where their rows come from."""

    mm_use_im_patch_token: bool
    mm_use_im_start_end: bool
    tune_mm_mlp_adapter: bool
    pretrain_mm_mlp_adapter: str | None


class QuestionArguments(Protocol):
    """What eval_model needs of its arguments; `llava.eval.run_llava.eval_model` names what else it reads."""

    model_path: str
    query: str
    image_file: str
