"""Models spread over devices: parts that are used outside the LLM's forward are held whole, in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llava.model import checkpoint as files
from llava.model.checkpoint import CheckpointError


def is_offloaded(model: nn.Module) -> bool:
    """Tell whether accelerate keeps weights of the model on the disk or the CPU until they are used."""
    return hasattr(model, "_hf_hook") and any(value.is_meta for value in model.parameters())


def refuse_offloading(model: nn.Module, why: str) -> None:
    """Raise CheckpointError, with `why` as its start, if weights of the model are offloaded."""
    if is_offloaded(model):
        raise CheckpointError(
            f"{why}, which needs all weights in memory; the device_map offloads some to the disk or the CPU. "
            f"Use the devices' memory only, or merge the model first (scripts/merge_lora_weights.py)."
        )


def hold_inputs(model: Any, source: str) -> None:
    """Bring embeddings, tower, projector and `image_newline` of a spread model into memory.

    accelerate loads an offloaded part when its `forward` runs, but these are also used without it, and their
    device is where inputs belong (`model.device`). Tower and projector lose accelerate's hooks: they stand
    on one device. source: folder of the weights. Does nothing to a model without hooks.
    """
    if not hasattr(model, "_hf_hook"):
        return
    _hold(model, model.get_input_embeddings(), source)
    if not hasattr(model, "get_vision_tower") or model.get_vision_tower() is None:
        return
    body = model.get_model()
    _hold(model, body.mm_projector, source)
    _hold(model, body.vision_tower, source, unhook=True)
    newline = getattr(body, "image_newline", None)
    if newline is None:
        return
    hook = getattr(body, "_hf_hook", None)
    if hook is not None and getattr(hook, "offload", False):  # it would send image_newline away again
        raise CheckpointError(
            "device_map offloads the LLM's body as a whole; name its parts instead: model.embed_tokens, "
            "model.layers.0 ..., model.norm, model.vision_tower, model.mm_projector, model.image_newline."
        )
    if newline.is_meta:
        name = _name_of(model, newline)
        value = _stored(source, [name])[name].to(device=computes_on(body.mm_projector), dtype=newline.dtype)
        body.image_newline = nn.Parameter(value, requires_grad=newline.requires_grad)


def computes_on(module: nn.Module) -> torch.device:
    """Return the device that a module computes on, also where accelerate keeps its weights elsewhere."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next((value.device for value in module.parameters()), torch.device("cpu"))


def _hold(model: nn.Module, part: nn.Module, source: str, *, unhook: bool = False) -> None:
    """Give a part whose weights are offloaded its values, on the device that it computes on."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    device = computes_on(part)
    offloaded = any(value.is_meta for value in part.parameters())
    if not (offloaded or unhook):
        return
    # values that were offloaded to the CPU come back with it
    remove_hook_from_module(part, recurse=True)
    wanted = {_name_of(model, value): value for value in part.parameters() if value.is_meta}
    stored = _stored(source, list(wanted))
    for module in part.modules():
        for key, value in list(module.named_parameters(recurse=False)):
            if value.is_meta:
                filled = stored[_name_of(model, value)].to(device=device, dtype=value.dtype)
                setattr(module, key, nn.Parameter(filled, requires_grad=value.requires_grad))
    part.to(device)
    if not unhook:
        add_hook_to_module(part, AlignDevicesHook(execution_device=device, place_submodules=True))


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
