"""--mm_tunable_parts, LLaVA-NeXT's flag for what trains, in terms of the flags that say it one by one."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, TypeVar

from llava.utils import UserError

logger = logging.getLogger(__name__)

TOWER, PROJECTOR, LLM = "mm_vision_tower", "mm_mlp_adapter", "mm_language_model"
PARTS = (TOWER, PROJECTOR, LLM)
# flags that say the same
OTHER_FLAGS = (
    "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter",
    "unfreeze_mm_vision_tower",
    "freeze_backbone",
)

ModelArguments = TypeVar("ModelArguments")  # of llava.train.args, which stands on this module


def parse_parts(text: str) -> frozenset[str]:
    """Return the parts that --mm_tunable_parts names. Raises UserError."""
    parts = [one.strip() for one in text.split(",")]
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--mm_tunable_parts has {part!r}; expected some of {', '.join(PARTS)}")
    return frozenset(parts)


def spread_parts(
    model_args: ModelArguments, given: frozenset[str], *, lora: bool
) -> tuple[ModelArguments, bool | None]:
    """Return the arguments with what --mm_tunable_parts says under the flags of the reference.

    Also returns --freeze_mm_mlp_adapter, which other arguments have; None without --mm_tunable_parts. given:
    names of the flags of the command line. lora: --lora_enable. Raises UserError for unknown parts, and for a
    flag beside it that says the same.
    """
    ours = vars(model_args)
    if ours["mm_tunable_parts"] is None:
        return model_args, None
    parts = parse_parts(ours["mm_tunable_parts"])
    if twice := [name for name in OTHER_FLAGS if name in given]:
        raise UserError(f"--mm_tunable_parts and --{twice[0]} both say what trains; give one of them")
    if ours["vision_tower"] is None:
        raise UserError("--mm_tunable_parts needs --vision_tower: a text model has one part")
    if LLM not in parts and lora:
        raise UserError(f"--lora_enable trains the LLM, and --mm_tunable_parts is without {LLM}; add it")
    without_llm, projector = LLM not in parts, PROJECTOR in parts
    return (
        _replaced(
            model_args,
            tune_mm_mlp_adapter=without_llm and projector,
            unfreeze_mm_vision_tower=TOWER in parts,
            freeze_backbone=without_llm and not projector,
        ),
        not projector,
    )


def _replaced(arguments: Any, **changes: bool) -> Any:
    return replace(arguments, **changes)


def freezes_head(text: str | None) -> bool:
    """Tell whether the LLM is frozen whole: --freeze_backbone leaves its head to train."""
    return text is not None and LLM not in parse_parts(text)
