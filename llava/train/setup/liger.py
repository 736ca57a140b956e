"""--use_liger_kernel: Liger's fused Triton kernels (https://arxiv.org/abs/2410.10989) in the LLM's layers."""

from __future__ import annotations

import logging
from typing import Any

from llava.utils import UserError, import_optional

logger = logging.getLogger(__name__)

FAMILIES = ("llama", "mistral")


def check_liger(training_args: Any) -> None:
    """Raise UserError where the kernels cannot run."""
    if training_args.device.type != "cuda":
        raise UserError(
            f"--use_liger_kernel True needs a CUDA device, this run is on {training_args.device.type}: the "
            "kernels are Triton programs. Leave the flag out"
        )
    _patches()


def use_liger(model: Any, training_args: Any) -> None:
    """Put the kernels for rotary positions, RMSNorm and SwiGLU into the layers of an LLM that is loaded.

    Liger's loss is left out: logits are computed on labelled positions only, and the loss of each sample is
    logged. The Trainer would look for `llava_llama` among Liger's models and do nothing, so it is told not
    to. Raises UserError for an LLM without such kernels.
    """
    family = model.config.model_type.removeprefix("llava_")
    if family not in FAMILIES:
        raise UserError(f"--use_liger_kernel True is for {' and '.join(FAMILIES)} models, not for {family!r}")
    apply = getattr(_patches(), f"apply_liger_kernel_to_{family}")
    apply(
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=model,
    )
    training_args.use_liger_kernel = False
    logger.info("Liger kernels: rotary positions, RMSNorm and SwiGLU of %s", family)


def _patches() -> Any:
    return import_optional(
        "liger_kernel.transformers", needed_for="--use_liger_kernel", install="llava[liger]"
    )
