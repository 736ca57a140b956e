"""Shim for an old import: flash attention is chosen when a model is loaded, nothing has to be patched."""

from __future__ import annotations

import logging

from llava.train.setup.attention import FLASH

logger = logging.getLogger(__name__)


def replace_llama_attn_with_flash_attn() -> str:
    """Patch nothing; return the name to pass as attn_implementation to train() or from_pretrained."""
    logger.warning(
        "replace_llama_attn_with_flash_attn() patches nothing any more: pass attn_implementation=%r instead",
        FLASH,
    )
    return FLASH
