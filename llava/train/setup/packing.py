"""--packing: the samples of a micro-batch stand one after the other in one row, without padding."""

from __future__ import annotations

import logging
from typing import Any

from llava._compat import attention_of
from llava.model.multimodal.packed_attention import use_samplewise_attention
from llava.model.multimodal.splice import Row, pack_rows
from llava.utils import UserError

logger = logging.getLogger(__name__)

# LLMs whose attention in transformers tells samples apart by positions that start again.
PACKABLE = ("llama", "mistral", "phi3", "qwen2", "qwen3")


def use_packing(model: Any) -> None:
    """Make a LLaVA pack its training batches. Raises UserError for an LLM that would mix samples."""
    family = model.config.model_type.removeprefix("llava_")
    if family not in PACKABLE:
        raise UserError(
            f"--packing True would mix samples in {family!r} models, whose attention does not know where a "
            f"sample starts; it works for {', '.join(PACKABLE)}"
        )
    model.packs_samples = True
    if attention_of(model.config) == "sdpa":
        use_samplewise_attention(model.config)


def pack_texts(inputs: dict[str, Any]) -> dict[str, Any]:
    """Pack a batch of padded texts, (B, T) each, for an LLM without image input: (1, length)."""
    ids, labels = inputs["input_ids"], inputs["labels"]
    keep = inputs["attention_mask"].bool()
    # ids take the place of embeddings
    rows = [Row(own[mask][:, None], of[mask]) for own, of, mask in zip(ids, labels, keep, strict=True)]
    packed, packed_labels, positions = pack_rows(rows)
    rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "labels", "attention_mask")}
    return {
        **rest,
        "input_ids": packed[..., 0],
        "labels": packed_labels,
        "position_ids": positions,
        "sample_lengths": [len(row.labels) for row in rows],
        "use_cache": False,  # with a cache, or with a mask, attention would take all for one sample
    }
