"""The vision model in a tower: its holder, how many of its layers are needed, and the others' weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava.model.checkpoints import files, loading
from llava.model.checkpoints.errors import CheckpointError, first_line
from llava.model.checkpoints.faults import check_loading
from llava.utils import UserError


class VisionModelHolder(nn.Module):
    """Holds transformers' vision model as `vision_model`.

    transformers 5 dropped that level of its vision models; LLaVA checkpoints have it in every tower key.
    """

    def __init__(self, vision_model: PreTrainedModel) -> None:
        super().__init__()
        self.vision_model = vision_model

    @property
    def config(self) -> Any:
        """The vision model's config."""
        return self.vision_model.config

    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> Any:
        """Run the whole vision model, as transformers does."""
        return self.vision_model(pixel_values, **kwargs)


def settled(name: str) -> str:
    """Return a folder's absolute path, right in every working directory; a hub name as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def own_layers(model_class: type[PreTrainedModel], source: str, place: str) -> Any:
    """Read a vision model from its own files, in float32; returns its layers, the submodule `place`."""
    model, info = loading.from_pretrained(model_class, source, dtype=torch.float32)
    info["unexpected_keys"] = ()
    check_loading(info, source, tower_is_built=True, projector_later=False)
    return model.get_submodule(place)


def stored_layers(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    source: str,
    place: str,
    names: Sequence[str],
) -> Any:
    """Return the layers of a vision model, filled with the weights that a checkpoint has under these names.

    source: the checkpoint's folder. The other layers are random. Raises CheckpointError for weights that
    are gone or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        layers = cast("nn.ModuleList", model_class(config).get_submodule(place))
    weights: dict[str, torch.Tensor] = {}
    for file in files.weight_files(source):
        weights.update(files.read_tensors(file, only=names))
    weights = {name.partition(f".{place}.")[2]: weights[name] for name in names if name in weights}
    brought = {name.partition(".")[0] for name in weights}
    behind = nn.ModuleDict({index: layers[int(index)] for index in sorted(brought)})
    try:
        if len(weights) < len(names):
            raise RuntimeError(f"{len(names) - len(weights)} of {len(names)} weights are gone")
        behind.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"The last layers of the vision tower in {source}, which are read when something asks for them, "
            f"cannot be loaded: {first_line(error)}"
        ) from error
    return layers


def layers_needed(index: int, layers: int) -> int:
    """Return how many layers `hidden_states[index]` has passed, of a vision model of so many layers.

    Raises UserError for a hidden state that it does not have.
    """
    if not -layers - 1 <= index <= layers:
        raise UserError(
            f"mm_vision_select_layer is {index}; this tower has hidden states {-layers - 1} to {layers}."
        )
    return index if index >= 0 else layers + 1 + index
