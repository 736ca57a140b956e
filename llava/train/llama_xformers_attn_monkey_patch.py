"""Shim for an old import: torch's SDPA holds the memory-efficient kernels that xformers was used for."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def replace_llama_attn_with_xformers_attn() -> str:
    """Patch nothing; return "sdpa", whose memory-efficient kernels replace those of xformers."""
    logger.warning(
        "xformers is not used any more: attention runs through torch's SDPA, which has the same "
        "memory-efficient kernels"
    )
    return "sdpa"
