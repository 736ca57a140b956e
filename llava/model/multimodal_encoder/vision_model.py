"""The vision model in a tower: its holder, how many of its layers are needed, and the others' weights."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava.model.checkpoints import files, loading
from llava.model.checkpoints.class_loading import progress_held
from llava.model.checkpoints.errors import CheckpointError
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
        places = (f".{inside_tower(name)}".partition(f".{self.place}.") for name in self.names)
        return [name for before, place, name in places if place and not before]

    def __call__(self, first: int, count: int) -> list[nn.Module]:
        """Read so many layers from number `first` on, in float32.

        Raises CheckpointError for weights that are gone, do not fit or have changed.
        """
        if _sample(self.source, self.names) != self.sample:
            raise self._error("the files have changed since the model was loaded; put back what was there")
        arguments: dict[str, Any] = {"dtype": torch.float32}
        if self.config is not None:
            arguments |= {"config": self.config, "state_dict": self._stored()}
        with progress_held():
            model, info = loading.from_pretrained(
                self.model_class,
                self.source,
                cut=partial(_leave, place=self.place, first=first, count=count),
                **arguments,
            )
        info["unexpected_keys"] = ()
        if self.config is not None:
            info["missing_keys"] = {n for n in info["missing_keys"] if n.startswith(f"{self.place}.")}
        check_loading(info, self.source, tower_is_built=True, projector_later=False)
        return list(model.get_submodule(self.place))[first:]

    def _stored(self) -> dict[str, torch.Tensor]:
        """Read what the checkpoint holds of them, by their names in the vision model."""
        weights: dict[str, torch.Tensor] = {}
        for file in files.weight_files(self.source):
            weights.update(files.read_tensors(file, only=self.names))
        return {inside_tower(name): weights[name].clone() for name in self.names}

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


def _leave(model: nn.Module, place: str, first: int, count: int) -> None:
    """Leave of a vision model's layers so many from number `first` on; the others are empty or gone."""
    layers = cast("nn.ModuleList", model.get_submodule(place))
    del layers[first + count :]
    for number in range(first):
        layers[number] = nn.Identity()


def inside_tower(name: str) -> str:
    """Return a weight's name in the vision model, of its name in a checkpoint or in the tower's own files."""
    return name.rpartition("vision_tower.")[2].removeprefix("vision_model.")


def names_with(numbers: Iterable[int], source: str, wanted: Callable[[str], bool]) -> list[str]:
    """Name the weights in a folder that have one of these numbers in their path, and that are wanted.

    Those of layers with the numbers are among them, also where transformers gives them other names.
    """
    parts = {str(number) for number in numbers}
    found = files.weight_files(source) if parts else ()
    stored = (name for file in found for name in files.read_tensors(file, shapes_only=True))
    return sorted(name for name in stored if wanted(name) and parts.intersection(name.split(".")))


def layers_needed(index: int, layers: int) -> int:
    """Return how many layers `hidden_states[index]` has passed, of a vision model of so many layers.

    Raises UserError for a hidden state that it does not have.
    """
    if not -layers - 1 <= index <= layers:
        raise UserError(
            f"mm_vision_select_layer is {index}; this tower has hidden states {-layers - 1} to {layers}."
        )
    return index if index >= 0 else layers + 1 + index
