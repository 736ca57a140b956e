"""The vision model in a tower: its holder, how many of its layers are needed, and the others' weights."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava.model.checkpoints import files, loading
from llava.model.checkpoints.class_loading import progress_held
from llava.model.checkpoints.errors import CheckpointError, first_line
from llava.model.checkpoints.faults import check_loading
from llava.utils import UserError

SAMPLED = 256  # values of each weight


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


@dataclass(frozen=True)
class LayersBehind:
    """Where the layers of a vision model are stored that nobody has read yet; calling it reads them.

    It holds no part of the model, which therefore is freed as soon as nobody uses it.
    """

    model_class: type[PreTrainedModel]
    source: str  # folder or hub name of the tower, or of the checkpoint that holds it
    place: str  # the module of the layers
    names: tuple[str, ...]  # of their weights
    config: PreTrainedConfig | None  # of a checkpoint's tower; None: the tower's own files
    sample: int  # of the weights, which tells that others have taken their place

    @classmethod
    def at(
        cls,
        model_class: type[PreTrainedModel],
        source: str,
        place: str,
        names: Iterable[str],
        config: PreTrainedConfig | None = None,
    ) -> LayersBehind:
        """Remember weights that are in the files now."""
        source, names = settled(source), tuple(names)
        return cls(model_class, source, place, names, config, _sample(source, names))

    @property
    def inside(self) -> list[str]:
        """The weights' names in the list of layers."""
        return [f".{name}".rpartition(f".{self.place}.")[2] for name in self.names]

    def __call__(self, first: int) -> list[nn.Module]:
        """Read the layers from number `first` on.

        Raises CheckpointError for weights that are gone, do not fit or have changed.
        """
        if _sample(self.source, self.names) != self.sample:
            raise self._error("the files have changed since the model was loaded; put back what was there")
        if self.config is None:
            return own_layers(self.model_class, self.source, self.place, first)
        try:
            return stored_layers(self.model_class, self.config, self.source, self.place, self.names)
        except RuntimeError as error:
            raise self._error(first_line(error)) from error

    def _error(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"The last layers of the vision tower in {self.source}, which are read when something asks for "
            f"them, cannot be loaded: {reason}."
        )


def _sample(source: str, names: Sequence[str]) -> int:
    """Return a number that a few values of each weight give: it differs for a tower that was trained on."""
    number = 0
    for file in files.weight_files(source) if names else ():
        for name, value in sorted(files.read_tensors(file, only=names).items()):
            part = value.reshape(-1)[:SAMPLED].contiguous().view(torch.uint8).numpy()
            number = zlib.crc32(part.tobytes(), zlib.crc32(name.encode(), number))
    return number


def own_layers(model_class: type[PreTrainedModel], source: str, place: str, first: int) -> list[nn.Module]:
    """Read a vision model's layers from number `first` on from its own files, in float32."""

    def cut(model: nn.Module) -> None:
        layers = cast("nn.ModuleList", model.get_submodule(place))
        for number in range(first):
            layers[number] = nn.Identity()

    with progress_held():
        model, info = loading.from_pretrained(model_class, source, cut=cut, dtype=torch.float32)
    info["unexpected_keys"] = ()
    check_loading(info, source, tower_is_built=True, projector_later=False)
    return list(model.get_submodule(place))[first:]


def stored_layers(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    source: str,
    place: str,
    names: Sequence[str],
) -> list[nn.Module]:
    """Return layers of a vision model, filled with the weights that a checkpoint has under these names.

    source: the checkpoint's folder. Raises RuntimeError for weights that are gone or do not fit.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in files.weight_files(source):
        weights.update({n: v.clone() for n, v in files.read_tensors(file, only=names).items() if n in names})
    weights = {f".{name}".rpartition(f".{place}.")[2]: weights[name] for name in names if name in weights}
    if len(weights) < len(names):
        raise RuntimeError(f"{len(names) - len(weights)} of {len(names)} weights are gone")
    layers = _built(model_class, config, place)
    wanted = sorted({int(name.partition(".")[0]) for name in weights})
    behind = nn.ModuleDict({str(index): layers[index] for index in wanted})
    behind.load_state_dict(weights, assign=True)
    return list(behind.values())


def _built(model_class: type[PreTrainedModel], config: PreTrainedConfig, place: str) -> nn.ModuleList:
    """Return a vision model's layers without values, or with random ones where that is not enough."""
    for device in ("meta", "cpu"):
        with torch.random.fork_rng(devices=[]), torch.device(device):
            layers = cast("nn.ModuleList", model_class(config).get_submodule(place))
        if not any(buffer.is_meta for buffer in layers.buffers()):  # those are computed, not stored
            break
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
