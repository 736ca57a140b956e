"""Attention for packed rows that runs PyTorch's fused kernel sample by sample, without any mask.

A mask over a packed row of length L costs L x L products, most of them between samples; the fused kernel
takes a causal row without a mask much faster. Registered with transformers as the attention "samplewise".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llava._compat import set_attention

SAMPLEWISE = "samplewise"


def use_samplewise_attention(config: PreTrainedConfig) -> None:
    """Replace SDPA by its sample by sample form; rows that are not packed are computed as before."""
    AttentionInterface.register(SAMPLEWISE, samplewise_attention)
    AttentionMaskInterface.register(SAMPLEWISE, samplewise_mask)
    set_attention(config, SAMPLEWISE)


def samplewise_mask(*, allow_is_causal_skip: bool = True, **kwargs: object) -> torch.Tensor | None:
    """Build SDPA's mask (B, 1, L, L); none for packed rows, which transformers forbids to take as causal."""
    is_packed = not allow_is_causal_skip and kwargs.get("attention_mask") is None
    if is_packed and kwargs.get("local_size") is None and kwargs["q_length"] == kwargs["kv_length"]:
        return None
    return sdpa_mask(allow_is_causal_skip=allow_is_causal_skip, **kwargs)


def samplewise_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sample_lengths: Sequence[int] | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attend within samples; query, key, value: (B, heads, L, D), result: (B, L, heads, D).

    sample_lengths: of the samples in a packed row (B is 1); by default read off position_ids.
    """
    if attention_mask is not None or query.shape[2] == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = _lengths(position_ids, query) if sample_lengths is None else list(sample_lengths)
    if len(lengths) < 2:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    parts = zip(*(whole.split(lengths, dim=2) for whole in (query, key, value)), strict=True)
    return torch.cat(
        [sdpa_attention_forward(module, *part, None, **kwargs)[0] for part in parts], dim=1
    ), None


def _lengths(position_ids: torch.Tensor | None, query: torch.Tensor) -> list[int]:
    if position_ids is None or query.shape[0] != 1 or position_ids.shape[-1] != query.shape[2]:
        return []
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    edges = [0, *[start for start in starts if start], query.shape[2]]
    return [after - before for before, after in zip(edges, edges[1:], strict=False)]
