"""Which attention kernel training uses: the fused one if asked for and working here, else SDPA."""

from __future__ import annotations

import importlib
import logging

import torch

logger = logging.getLogger(__name__)

FLASH = "flash_attention_2"


def _why_no_flash(*, half_precision: bool) -> str:
    """Say why flash attention cannot run here, or return "" when it can."""
    if not torch.cuda.is_available():
        return "it needs a CUDA device"
    try:
        importlib.import_module("flash_attn")
    # a build for another torch fails with OSError or ImportError, missing symbols with RuntimeError
    except (ImportError, OSError, RuntimeError) as error:
        return f"the package flash-attn does not work ({type(error).__name__}: {error})".replace("\n", " ")
    if not half_precision:
        return "it computes in bfloat16 or float16 only; add --bf16 True"
    return ""


def select_attention(
    requested: str | None, *, half_precision: bool, supports_sdpa: bool = True
) -> str | None:
    """Choose the attention implementation, and say once which one and why.

    requested: "flash_attention_2", "sdpa", "eager" or None (SDPA). Models without SDPA (MPT) use their own:
    None.
    """
    fallback = "sdpa" if supports_sdpa else None
    name = fallback or "the model's own"
    if requested == FLASH:
        reason = _why_no_flash(half_precision=half_precision)
        if not reason and fallback:
            logger.info("attention: %s", FLASH)
            return FLASH
        logger.info(
            "attention: %s instead of %s, %s", name, FLASH, reason or "this model does not support it"
        )
        return fallback
    chosen = requested or fallback
    if chosen == "sdpa" and not supports_sdpa:
        chosen = None
    logger.info("attention: %s", chosen or name)
    return chosen
