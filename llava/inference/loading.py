"""Opening a checkpoint for asking: device and dtype are chosen here, once, for every program."""

from __future__ import annotations

import os

import torch

from llava.inference.model import LoadedModel
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import best_device, best_dtype, load_pretrained_model
from llava.utils import UserError

__all__ = ["LoadedModel", "check_device", "open_model"]


def open_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    use_flash_attn: bool = False,
) -> LoadedModel:
    """Load a checkpoint on a device (None: the best one present) in a dtype (None: one that is fast there).

    Under `accelerate launch` or `torchrun` the best device is the process's own GPU.

    Raises UserError when the device or the checkpoint is missing, in one sentence.
    """
    device = check_device(device)
    name = model_name or get_model_name_from_path(model_path)
    loaded = load_pretrained_model(
        model_path,
        model_base,
        name,
        load_8bit,
        load_4bit,
        device=device,
        use_flash_attn=use_flash_attn,
        dtype=best_dtype(device) if dtype is None else dtype,
    )
    return LoadedModel(*loaded)


def check_device(device: str | None) -> str:
    """Return the device to use: the given one if this machine has it, else UserError; None means the best."""
    if device is None:
        return _own_device(best_device())
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device is {device!r}; expected cpu, cuda, cuda:N or mps") from error
    if wanted.type == "cuda":
        present = torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count()
    else:
        present = wanted.type == "cpu" or (wanted.type == "mps" and torch.backends.mps.is_available())
    if not present:
        raise UserError(f"device {device!r} is not usable here; use --device {best_device()} or omit it")
    return device


def _own_device(device: str) -> str:
    """Return the GPU of this process where a launcher started several, else the device as it is."""
    if device == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device
