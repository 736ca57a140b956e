"""Layers of a model that are read from their files when something asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava._compat import forward_hooks, set_children

if TYPE_CHECKING:
    from typing_extensions import Self

_LOCK = threading.RLock()  # one reads at a time, and none twice; a lock of each list could not be copied
_HELD: ContextVar[bool] = ContextVar("held", default=False)  # see `reading_held`


class LayersOnDemand(nn.ModuleList):
    """Layers of which the last are read from their files when they are first asked for.

    What asks for them: iterating, as the vision model's own forward does, an index, name or slice that
    reaches them, `state_dict`, `load_state_dict` with weights for them, and changing the list. `len` counts
    them. What walks over modules and parameters (`parameters`, `to`) sees the layers that are there; those
    behind then come like these: on their device, of their dtype, in their mode, frozen.
    """

    unread = 0

    def __init__(
        self,
        present: Iterable[nn.Module],
        unread: int,
        read: Callable[[int, int], Iterable[nn.Module]],
        names: Iterable[str],
    ) -> None:
        """present: the first layers, at least one. unread: how many follow them. read: returns these, told
        the number of the first of them and how many. names: of their weights, in this list."""
        super().__init__(present)
        self.training = next(self.children()).training
        self._first = len(self)
        self._read = read
        self._names = tuple(names)
        self.unread = unread
        self.register_load_state_dict_pre_hook(_read_if_brought)

    @torch.compiler.assume_constant_result
    def read(self) -> None:
        """Read the layers that are not there yet. Raises CheckpointError when that fails."""
        if not self.unread:
            return
        with _LOCK, torch.inference_mode(mode=False), torch.device("cpu"):
            if not self.unread:  # another thread has read them
                return
            present = dict(self.named_children())
            behind = self._alike(list(present.values()), self._read(self._first, self.unread))
            numbered = {str(number): layer for number, layer in enumerate(behind, self._first)}
            # a new dict: who walks over the modules at this time goes on with those that were there
            set_children(self, {**present, **numbered})
            self.unread = 0

    def _alike(self, present: list[nn.Module], behind: Iterable[nn.Module]) -> nn.ModuleList:
        """Make layers like those that are there."""
        first = next(present[0].parameters())
        device = "cpu" if first.is_meta else first.device  # meta: weights wait on CPU or disk
        layers = nn.ModuleList(behind).to(device=device, dtype=first.dtype)
        layers.requires_grad_(requires_grad=False).train(self.training)
        known = {type(one): one for layer in present for one in layer.modules()}
        for one in layers.modules():
            like = known.get(type(one))
            if like is None:
                continue
            if hasattr(like, "config"):  # holds the kind of attention
                one.config = like.config
            for hook in forward_hooks(like):
                if hook.__module__.startswith("transformers."):  # records hidden states and attentions
                    one.register_forward_hook(hook)
        return layers

    def __len__(self) -> int:
        return self._first + self.unread if self.unread else super().__len__()

    def __iter__(self) -> Iterator[nn.Module]:
        self.read()
        return super().__iter__()

    def __getitem__(self, idx: int | slice) -> Any:
        wanted = range(len(self))[idx]
        places = [wanted] if isinstance(wanted, int) else list(wanted)
        if self.unread and max(places, default=-1) >= self._first:
            self.read()
        layers = list(self.children())
        return layers[wanted] if isinstance(wanted, int) else nn.ModuleList(layers[at] for at in places)

    def __getattr__(self, name: str) -> Any:
        if name.isdecimal() and self.unread and int(name) in range(self._first, len(self)):
            self.read()  # by name, as `get_submodule` and `get_parameter` ask
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: torch.Tensor | nn.Module) -> None:
        if name.isdecimal():
            self.read()
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name.isdecimal():
            self.read()
        super().__delattr__(name)

    def __repr__(self) -> str:
        """Show the layers that are there: what prints a model reads no files."""
        text = repr(nn.ModuleList(self.children())).replace("ModuleList", type(self).__name__, 1)
        behind = f"{self._first}-{len(self) - 1}" if self.unread > 1 else self._first
        return f"{text[:-1]}  ({behind}): read when asked for\n)" if self.unread else text

    def state_dict(self, *args: object, **kwargs: object) -> Any:
        """Return the weights of all layers."""
        if not _HELD.get():
            self.read()
        return super().state_dict(*args, **kwargs)  # type: ignore[call-overload, unused-ignore]

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Put a layer to a name, as `append` and `extend` do."""
        self.read()
        super().add_module(name, module)

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

    def extend(self, modules: Iterable[nn.Module]) -> Self:
        """Put layers behind all others."""
        self.read()
        return super().extend(modules)


def _read_if_brought(
    layers: LayersOnDemand,
    weights: Mapping[str, torch.Tensor],
    prefix: str,
    _metadata: object,
    _strict: bool,
    missing: list[str],
    *_others: object,
) -> None:
    """Read layers that `load_state_dict` has weights for; without any, say which it lacks."""
    brought = {name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)}
    if brought & {str(number) for number in range(len(layers) - layers.unread, len(layers))}:
        layers.read()
    elif layers.unread:
        missing.extend(prefix + name for name in layers._names)


@contextmanager
def reading_held() -> Iterator[None]:
    """Let `state_dict` pass over layers that are not read yet, for code that uses other parts of it alone."""
    token = _HELD.set(True)
    try:
        yield
    finally:
        _HELD.reset(token)
