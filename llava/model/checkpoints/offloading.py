"""Models spread over devices: parts that are used outside the LLM's forward are held whole, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from llava._compat import hook_of
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_offloaded(model: nn.Module) -> bool:
    """Tell whether accelerate keeps weights of the model on the disk or the CPU until they are used."""
    return hook_of(model) is not None and any(value.is_meta for value in model.parameters())


def refuse_offloading(model: nn.Module, why: str) -> None:
    """Raise CheckpointError, with `why` as its start, if weights of the model are offloaded."""
    if is_offloaded(model):
        raise CheckpointError(
            f"{why}, which needs all weights in memory; the device_map offloads some to the disk or the CPU. "
            f"Use the devices' memory only, or merge the model first (scripts/merge_lora_weights.py)."
        )


def hold_inputs(model: PreTrainedModel, source: str) -> None:
    """Bring embeddings, tower, projector and `image_newline` of a spread model into memory.

    accelerate loads an offloaded part when its `forward` runs, but these are also used without it, and their
    device is where inputs belong (`model.device`). The tower loses accelerate's hooks and may be moved.
    source: folder of the weights. Does nothing to a model without hooks. Raises CheckpointError for a weight
    that the folder does not store.
    """
    if hook_of(model) is None:
        return
    _hold(model, model.get_input_embeddings(), source)
    if not hasattr(model, "get_vision_tower") or model.get_vision_tower() is None:
        return
    body = model.get_model()
    _hold(model, body.mm_projector, source)
    _hold(model, body.vision_tower, source, unhook=True)
    _hold(model, body, source, recurse=False)  # image_newline is a weight of its own


def computes_on(module: nn.Module) -> torch.device:
    """Return the device that a module computes on, also where accelerate keeps its weights elsewhere."""
    for part in module.modules():
        device = getattr(hook_of(part), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next((value.device for value in module.parameters()), torch.device("cpu"))


def _hold(
    model: nn.Module, part: nn.Module, source: str, *, recurse: bool = True, unhook: bool = False
) -> None:
    """Give a part whose weights are offloaded its values, on the device that it computes on.

    recurse: also the modules in it. unhook: its modules no longer fetch their inputs to a device.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    device = computes_on(part)
    offloaded = any(value.is_meta for value in part.parameters(recurse=recurse))
    if not (offloaded or unhook):
        return
    # values that were offloaded to the CPU come back with it
    remove_hook_from_module(part, recurse=recurse)
    modules = list(part.modules()) if recurse else [part]
    places = [
        (module, key, value, _name_of(model, value))
        for module in modules
        for key, value in module.named_parameters(recurse=False)
        if value.is_meta or value.device != device
    ]
    stored = _stored(source, [name for _, _, value, name in places if value.is_meta])
    for module, key, value, name in places:
        filled = stored.get(name, value.data).to(device=device, dtype=value.dtype)
        setattr(module, key, nn.Parameter(filled, requires_grad=value.requires_grad))
    if recurse:
        part.to(device)  # buffers
    if not unhook:
        add_hook_to_module(part, AlignDevicesHook(execution_device=device, place_submodules=recurse))


def _name_of(model: nn.Module, wanted: torch.Tensor) -> str:
    return next(name for name, value in model.named_parameters() if value is wanted)


def _stored(source: str, names: list[str]) -> dict[str, torch.Tensor]:
    """Read weights by name from a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in files.weight_files(source) if names else ():
        found.update(files.read_tensors(file, only=names))
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckpointError(
            f"{source} does not store {missing[0]}, so it cannot be offloaded; give it a device in "
            f"device_map."
        )
    return found
