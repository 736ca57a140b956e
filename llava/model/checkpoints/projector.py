"""Fills a projector, and the newline beside it, from weights of a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from llava.model.checkpoints.files import CheckpointError, part_of
from llava.model.checkpoints.gather import gathered


def fill_projector(
    projector: nn.Module,
    image_newline: nn.Parameter | None,
    weights: dict[str, torch.Tensor],
    source: str,
    kind: str,
) -> None:
    """Fill a projector of `kind` from weights named `...mm_projector.*`; `source` is named in errors.

    image_newline: is filled as well, if there is one and the weights have it. Raises CheckpointError.
    """
    found = part_of(weights, "mm_projector")
    newline = next((value for name, value in weights.items() if name.endswith("image_newline")), None)
    with gathered(projector.parameters(), write=True):
        compare_projector(projector, weights, source, kind)
        projector.load_state_dict(found)
    if newline is not None and image_newline is not None:
        with gathered([image_newline], write=True), torch.no_grad():
            image_newline.copy_(newline)


def compare_projector(
    projector: nn.Module, weights: Mapping[str, torch.Tensor], source: str, kind: str
) -> None:
    """Raise CheckpointError unless weights named `...mm_projector.*` have a projector's names and shapes."""
    stored = {name: tuple(value.shape) for name, value in part_of(weights, "mm_projector").items()}
    expected = {name: tuple(value.shape) for name, value in projector.state_dict().items()}
    if stored != expected:
        raise CheckpointError(
            f"{source} does not fit the projector {kind!r}: it holds {stored or 'none'}, expected "
            f"{expected}. Check mm_projector_type and the width of tower and LLM."
        )
