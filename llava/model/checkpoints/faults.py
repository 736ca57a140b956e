"""Which weights a checkpoint lacks, has no place for, or stores in another shape, and which are exempt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llava.model.checkpoints import files
from llava.model.checkpoints.errors import CheckpointError

# what adapter and projector-only folders bring themselves, on top of a base that lacks it
BROUGHT_LATER = files.PROJECTOR_NAMES

# why a weight is neither loaded as it is stored nor a fault
RECOMPUTED = "buffers that are computed, whatever is stored"
TOWER_FILES = "read from the vision tower's own files"
TOWER_COPY = "a copy of the vision tower, not used"
TOWER_REST = "of the vision tower's files, no part of it (such as a text encoder)"
TOWER_BEHIND = "behind the selected layer of the vision tower, read when something asks for them"
BROUGHT = "brought by the projector or the adapter, not by the base"
NEWLINE = "not used with this mm_patch_merge_type"
NEW_ROWS = "rows of new tokens, filled after the base was loaded"
MEAN_ROWS = "their last rows are not stored: the mean of the others"
CUT_ROWS = "rows beyond the tokens are cut off"

Exempt = dict[str, list[str]]  # the reasons above, and the names of the weights that each is true of


def note(exempt: Exempt | None, reason: str, names: Iterable[str]) -> None:
    """Add names of weights to a list of exemptions; None: nobody asked."""
    if exempt is not None and (found := sorted(set(names) - set(exempt.get(reason, ())))):
        exempt.setdefault(reason, []).extend(found)


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


def _note_exempt(
    exempt: Exempt, info: dict[str, Any], *, tower_is_built: bool, projector_later: bool
) -> None:
    """List what `find_faults` passes over; stored_names, where known, has what transformers passes over."""
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    every = (*missing, *unexpected, *info.get("stored_names", ()))
    note(exempt, RECOMPUTED, [name for name in every if files.is_recomputed(name)])
    towers = [name for name in missing if files.is_tower_key(name) and not files.is_recomputed(name)]
    note(exempt, TOWER_FILES, towers)
    copies = [name for name in unexpected if files.is_tower_key(name) and not files.is_recomputed(name)]
    note(exempt, TOWER_COPY, () if tower_is_built else copies)
    later = [name for name in missing if projector_later and any(part in name for part in BROUGHT_LATER)]
    note(exempt, BROUGHT, later)


def check_loading(
    info: dict[str, Any],
    path: str,
    *,
    tower_is_built: bool,
    projector_later: bool,
    exempt: Exempt | None = None,
) -> None:
    """Raise UnfitWeightsError that names a key which is missing, unexpected, or of another shape.

    tower_is_built: the model has tower parameters, so stored tower weights have a place. projector_later:
    projector and image_newline may be missing, because the next step fills them. exempt: is filled with what
    is no fault.
    """
    if exempt is not None:
        _note_exempt(exempt, info, tower_is_built=tower_is_built, projector_later=projector_later)
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
