"""--use_liger_kernel: Liger's fused Triton kernels (https://arxiv.org/abs/2410.10989) in the LLM's layers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from llava.model.language_model.registry import FAMILIES, find_family
from llava.utils import UserError, import_optional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PREFIX = "apply_liger_kernel_to_"
# Liger's loss is left out: logits are computed on labelled positions only, and each sample's loss is logged
OFF = ("cross_entropy", "fused_linear_cross_entropy")


def check_liger(device: torch.device) -> None:
    """Raise UserError where the kernels cannot run."""
    if device.type != "cuda":
        raise UserError(
            f"--use_liger_kernel True needs a CUDA device, this run is on {device.type}: the "
            "kernels are Triton programs. Leave the flag out"
        )
    _patches()


def use_liger(model: PreTrainedModel) -> None:
    """Put the kernels that Liger has for an LLM (positions, norms, gated layers) into one that is loaded.

    The Trainer would look for `llava_llama` among Liger's models and do nothing: `args.for_trainer` tells it
    not to. Raises UserError for an LLM without such kernels.
    """
    family = find_family(model.config.model_type)
    base_type = model.config.model_type if family is None else family.base_type
    name = base_type if family is None else family.liger
    if name is None:
        raise UserError(
            f"--use_liger_kernel True is for {_named(one.liger for one in FAMILIES)} models, not for "
            f"{base_type!r}"
        )
    patches = _patches()
    apply = getattr(patches, PREFIX + name, None)
    if apply is None:
        names = {*dir(patches), *getattr(patches, "__all__", ())}
        known = (one.removeprefix(PREFIX) for one in names if one.startswith(PREFIX))
        raise UserError(
            f"--use_liger_kernel True is not for {base_type!r} models: the installed liger-kernel knows "
            f"{_named(known)}"
        )
    taken = inspect.signature(apply).parameters
    apply(**{name: False for name in OFF if name in taken}, model=model)
    used = [one for one, switch in taken.items() if switch.default is True and one not in OFF]
    logger.info("Liger kernels of %s: %s", base_type, ", ".join(used))


def _named(names: Iterable[str | None]) -> str:
    return ", ".join(sorted(filter(None, names))) or "no"


def _patches() -> Any:
    return import_optional(
        "liger_kernel.transformers", needed_for="--use_liger_kernel", install="llava[liger]"
    )
