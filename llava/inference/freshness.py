"""What tells that a model has changed since it was last asked: weights, dtype, device, adapters, mode."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from llava._compat import version_of
from llava.model.multimodal.config import MultimodalConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What PEFT's layers say of themselves: which adapters act, with what weight, and which are merged.
_ADAPTER_STATE = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")


def state_of(model: PreTrainedModel) -> Hashable:
    """Return a value that differs once anything that answers depend on has changed.

    Each parameter counts with its place in memory, version, dtype and one of its values: writing through
    `.data` moves no version, and memory that was freed may come back at the same address. Costs a few
    microseconds a parameter; nothing is read in whole.
    """
    parameters = list(model.parameters())
    tower = model.get_vision_tower() if hasattr(model, "get_vision_tower") else None
    return (
        tuple(_place(one) for one in parameters),
        _samples(parameters),
        tuple(_modes(model)),
        MultimodalConfig.of(model.config),
        None if tower is None else (tower.select_layer, tower.select_feature),
    )


def _place(value: nn.Parameter) -> Hashable:
    address = 0 if value.device.type == "meta" else value.data_ptr()
    return id(value), address, version_of(value), value.dtype, value.device, value.shape


def _samples(parameters: list[nn.Parameter]) -> Hashable:
    """Return the value in the middle of each parameter, read from each device at once."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    with torch.inference_mode():
        for one in parameters:
            if one.device.type == "meta" or not (size := one.numel()):
                continue
            offset = size // 2
            if not one.is_contiguous():
                offset = sum(n // 2 * step for n, step in zip(one.shape, one.stride(), strict=True))
            value = one.as_strided((1,), (1,), one.storage_offset() + offset)
            groups.setdefault((one.device, one.dtype), []).append(value)
        read = []
        for found in groups.values():
            values = torch.cat(found).cpu()  # (n,)
            read.append(values.view(torch.uint8).numpy().tobytes())
    return tuple(read)


def _modes(model: nn.Module) -> Iterator[Hashable]:
    """Yield the mode of modules (dropout acts in training) and the state of adapters."""
    for module in model.modules():
        yield module.training
        if hasattr(module, "merged_adapters"):
            yield tuple(repr(getattr(module, name)) for name in _ADAPTER_STATE if hasattr(module, name))
