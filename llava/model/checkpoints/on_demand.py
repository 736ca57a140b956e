"""Layers of a model that are read from their files when something asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava.protocols import CausalModel

if TYPE_CHECKING:
    from typing_extensions import Self


class LayersOnDemand(nn.ModuleList):
    """Layers of which the last are read from their files when they are first asked for.

    What asks for them: iterating, as the vision model's own forward does, an index or slice that reaches
    them, `state_dict`, `load_state_dict` with weights for them, and changing the list. `len` counts them.
    What walks over modules and parameters (`parameters`, `to`) sees the layers that are there.
    """

    unread = 0
    held = False  # see `reading_held`

    def __init__(
        self, present: Iterable[nn.Module], unread: int, read: Callable[[], Iterable[nn.Module]]
    ) -> None:
        """present: the first layers. unread: how many follow them. read: returns these."""
        super().__init__(present)
        self.unread = unread
        self._read = read
        self.register_load_state_dict_pre_hook(_read_if_brought)

    def read(self) -> None:
        """Read the layers that are not there yet. Raises CheckpointError when that fails."""
        if self.unread:
            layers = list(self._read())
            self.unread = 0
            super().extend(layers)

    def __len__(self) -> int:
        return super().__len__() + self.unread

    def __iter__(self) -> Iterator[nn.Module]:
        self.read()
        return super().__iter__()

    def __getitem__(self, idx: int | slice) -> Any:
        wanted = range(len(self))[idx]
        places = [wanted] if isinstance(wanted, int) else list(wanted)
        if max(places, default=-1) >= len(self) - self.unread:
            self.read()
        layers = list(self.children())
        return layers[wanted] if isinstance(wanted, int) else nn.ModuleList(layers[at] for at in places)

    def state_dict(self, *args: object, **kwargs: object) -> Any:
        """Return the weights of all layers."""
        if not self.held:
            self.read()
        return super().state_dict(*args, **kwargs)  # type: ignore[call-overload, unused-ignore]

    def __setitem__(self, idx: int, module: nn.Module) -> None:
        self.read()
        super().__setitem__(idx, module)

    def __delitem__(self, idx: int | slice) -> None:
        self.read()
        super().__delitem__(idx)

    def insert(self, index: int, module: nn.Module) -> None:
        """Put a layer in front of another."""
        self.read()
        super().insert(index, module)

    def append(self, module: nn.Module) -> Self:
        """Put a layer behind all others."""
        self.read()
        return super().append(module)

    def extend(self, modules: Iterable[nn.Module]) -> Self:
        """Put layers behind all others."""
        self.read()
        return super().extend(modules)


def _read_if_brought(
    layers: LayersOnDemand, weights: Mapping[str, torch.Tensor], prefix: str, *_others: object
) -> None:
    """Read layers that `load_state_dict` has weights for."""
    brought = {name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)}
    if brought & {str(place) for place in range(len(layers) - layers.unread, len(layers))}:
        layers.read()


@contextmanager
def reading_held(model: CausalModel) -> Iterator[None]:
    """Let `state_dict` pass over layers that are not read yet, for code that uses other parts of it alone."""
    lists = [one for _, one in model.named_modules() if isinstance(one, LayersOnDemand)]
    for one in lists:
        one.held = True
    try:
        yield
    finally:
        for one in lists:
            one.held = False
