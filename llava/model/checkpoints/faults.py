"""Which weights a checkpoint lacks, has no place for, or stores in another shape, and which are exempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llava.model.checkpoints import files
from llava.model.checkpoints.errors import CheckpointError

# what adapter and projector-only folders bring themselves, on top of a base that lacks it
BROUGHT_LATER = files.PROJECTOR_NAMES


@dataclass(frozen=True)
class Faults:
    """Weights that a checkpoint lacks, has no place for, or stores in another shape than its config says.

    shapes: (name, shape stored, shape expected).
    """

    missing: list[str]
    unexpected: list[str]
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]


class UnfitWeightsError(CheckpointError):
    """Weights are missing, left over or of another shape; `faults` lists them all."""

    def __init__(self, message: str, faults: Faults) -> None:
        super().__init__(message)
        self.faults = faults


def find_faults(info: dict[str, Any], *, tower_is_built: bool, projector_later: bool) -> Faults:
    """Pick the faults among transformers' lists of keys; the arguments are those of `check_loading`."""
    missing = sorted(
        name
        for name in info["missing_keys"]
        if not files.is_recomputed(name)
        and not files.is_tower_key(name)  # filled from the tower's own files
        and not (projector_later and any(part in name for part in BROUGHT_LATER))
    )
    unexpected = sorted(
        name
        for name in info["unexpected_keys"]
        if not files.is_recomputed(name) and (tower_is_built or not files.is_tower_key(name))
    )
    shapes = sorted((name, tuple(stored), tuple(asked)) for name, stored, asked in info["mismatched_keys"])
    return Faults(missing, unexpected, shapes)


def check_loading(info: dict[str, Any], path: str, *, tower_is_built: bool, projector_later: bool) -> None:
    """Raise UnfitWeightsError that names a key which is missing, unexpected, or of another shape.

    tower_is_built: the model has tower parameters, so stored tower weights have a place. projector_later:
    projector and image_newline may be missing, because the next step fills them.
    """
    faults = find_faults(info, tower_is_built=tower_is_built, projector_later=projector_later)
    message = ""
    if shapes := faults.shapes:
        name, stored, expected = shapes[0]
        message = (
            f"{path} holds {count_of([one[0] for one in shapes])} of another shape than its config asks for: "
            f"{name} has {stored}, expected {expected}."
        )
    elif missing := faults.missing:
        message = f"{path} lacks {count_of(missing)} that its config asks for: {some_of(missing)}."
    elif unexpected := faults.unexpected:
        message = (
            f"{path} has {count_of(unexpected)} that its config has no place for: {some_of(unexpected)}."
        )
    if message:
        raise UnfitWeightsError(message, faults)


def count_of(names: list[str]) -> str:
    """Say how many weights there are."""
    return "1 weight" if len(names) == 1 else f"{len(names)} weights"


def some_of(names: list[str]) -> str:
    """Name the first of some weights."""
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
