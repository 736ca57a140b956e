"""Weights that DeepSpeed's ZeRO-3 or FSDP2 has split over the processes: made whole to read or write them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch


def is_split(param: object) -> bool:
    """Tell whether ZeRO-3 manages a parameter; its `data` is then empty outside of a forward pass."""
    return hasattr(param, "ds_id")


@contextlib.contextmanager
def gathered(params: Iterable[torch.Tensor], *, write: bool) -> Iterator[None]:
    """Gather parameters that ZeRO-3 has split for the time of the block; every process has to enter it.

    write: what the block changes is kept. All processes have to make the same changes; the first one's count.
    Does nothing for ordinary parameters.
    """
    split = [param for param in params if is_split(param)]
    if not split:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(split, modifier_rank=0 if write else None):
        yield


def full_values(param: torch.Tensor) -> torch.Tensor:
    """Return a copy of a parameter's full values on the CPU; every process has to call it."""
    full_tensor = getattr(param.detach(), "full_tensor", None)  # of FSDP2's DTensor
    if full_tensor is not None:
        return full_tensor().cpu().clone()
    with gathered([param], write=False):
        return param.data.detach().cpu().clone()
