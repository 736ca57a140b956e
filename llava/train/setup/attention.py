"""--attn: which attention kernel training uses, and why one that was asked for cannot be had."""

from __future__ import annotations

import importlib
import logging

import torch

from llava.model.language_model.family import KERNELS
from llava.utils import UserError

logger = logging.getLogger(__name__)

AUTO = "auto"
FLASH = "flash_attention_2"
CHOICES = (AUTO, *KERNELS)

# kernels that come in a package: what it is imported as, and what to install
_PACKAGES = {
    FLASH: ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


def why_not(kernel: str, *, half_precision: bool) -> str:
    """Say why a kernel cannot run here, or return "" when it can."""
    if kernel in ("sdpa", "eager"):
        return ""
    if not torch.cuda.is_available():
        # torch's flex_attention runs on a CPU, but has no backward pass there
        return "it needs a CUDA device"
    if kernel not in _PACKAGES:
        return ""
    module, package = _PACKAGES[kernel]
    try:
        importlib.import_module(module)
    # a build for another torch fails with OSError or ImportError, missing symbols with RuntimeError
    except (ImportError, OSError, RuntimeError) as error:
        return f"the package {package} does not work ({type(error).__name__}: {error})".replace("\n", " ")
    if not half_precision:
        return "it computes in bfloat16 or float16 only; add --bf16 True"
    return ""


def select_attention(
    requested: str | None,
    *,
    half_precision: bool,
    offered: tuple[str, ...] = KERNELS,
    flag: str = AUTO,
    model_type: str = "this model",
) -> str | None:
    """Choose the attention implementation, and say once which one and why.

    flag: --attn; what it names is used, or UserError says why it cannot be. With "auto" the program decides:
    requested is what it would like, "flash_attention_2", "sdpa", "eager" or None (SDPA); where that cannot be
    had, SDPA serves, and for a model without SDPA its own attention: None. offered: by the model's classes.
    """
    if flag != AUTO:
        return _demand(flag, half_precision, offered, model_type)
    fallback = "sdpa" if "sdpa" in offered else None
    name = fallback or "the model's own"
    if requested == FLASH:
        reason = why_not(FLASH, half_precision=half_precision)
        if not reason and FLASH in offered:
            logger.info("attention: %s", FLASH)
            return FLASH
        logger.info(
            "attention: %s instead of %s, %s", name, FLASH, reason or "this model does not support it"
        )
        return fallback
    chosen = requested if requested in offered else fallback
    logger.info("attention: %s", chosen or name)
    return chosen


def _demand(kernel: str, half_precision: bool, offered: tuple[str, ...], model_type: str) -> str:
    """Return the kernel that --attn names. Raises UserError where it cannot be used."""
    if kernel not in offered:
        raise UserError(
            f"--attn {kernel} is not offered for {model_type} models by the installed transformers, which "
            f"has {', '.join(offered)}; take one of those, or --attn auto"
        )
    if reason := why_not(kernel, half_precision=half_precision):
        raise UserError(f"--attn {kernel} cannot be used: {reason}. --attn auto takes what works")
    logger.info("attention: %s, as --attn says", kernel)
    return kernel
