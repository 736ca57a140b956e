"""--packing: the samples of a micro-batch stand one after the other in one row, without padding."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from llava._compat import attention_of
from llava.model.language_model.probing import small_model
from llava.model.language_model.registry import FAMILIES, find_family
from llava.model.multimodal.packed_attention import SAMPLEWISE, use_samplewise_attention
from llava.model.multimodal.splice import SplicedRow, pack_rows
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_APART = 1e-3  # logits of packed samples that run into each other differ by more than 1


def use_packing(model: PreTrainedModel) -> None:
    """Make a model pack its training batches. Raises UserError for an LLM that would mix samples.

    The registry tells of its families; another LLM is tried out on a small random model of its kind.
    """
    config = model.config
    family = find_family(config.model_type)
    base_type = config.model_type if family is None else family.base_type
    packable = None if family is None else family.packable
    why = "whose attention does not know where a sample starts"
    if packable is None:
        packable, why = keeps_samples_apart(base_type, attention_of(config))
    if not packable:
        known = ", ".join(one.base_type for one in FAMILIES if one.packable)
        raise UserError(
            f"--packing True would mix samples in {base_type!r} models, {why}; it works for {known}, and "
            "others whose packed samples give what they give alone"
        )
    model.packs_samples = True
    if attention_of(config) == "sdpa":
        use_samplewise_attention(config)


def keeps_samples_apart(model_type: str, attention: str | None) -> tuple[bool, str]:
    """Compare packed samples with the same samples alone, on a small model; returns that, and why not.

    attention: the implementation to try; for one that needs a GPU, the masks of the eager one are.
    """
    try:
        model = _small_model(model_type, attention)
        worst = _packed_against_alone(model)
    except Exception as error:  # whatever an unknown architecture objects to
        return False, f"which could not be tried out here ({type(error).__name__}: {str(error)[:120]})"
    if not worst < _APART:
        return False, f"whose logits change by {worst:.1e} when samples share a row"
    logger.info("packing: samples of %r models stay apart (difference %.0e)", model_type, worst)
    return True, ""


def _small_model(model_type: str, attention: str | None) -> Any:
    wanted = "sdpa" if attention in ("sdpa", SAMPLEWISE) else "eager"
    model = small_model(model_type, attn_implementation=wanted)
    if attention_of(model.config) == "sdpa":
        use_samplewise_attention(model.config)
    return model


@torch.no_grad()
def _packed_against_alone(model: PreTrainedModel) -> float:
    """Return the largest difference between logits of two samples in one row and alone."""
    order = torch.Generator().manual_seed(0)
    samples = [torch.randint(3, 60, (1, length), generator=order) for length in (9, 13)]
    embed = model.get_input_embeddings()
    alone = torch.cat([model(inputs_embeds=embed(one), use_cache=False).logits for one in samples], dim=1)
    packed, _, positions = pack_rows([SplicedRow(embed(one)[0], one[0]) for one in samples])
    settings = {"position_ids": positions, "sample_lengths": [9, 13], "use_cache": False}  # as in training
    logits = model(inputs_embeds=packed, **settings).logits
    return float((logits - alone).abs().max())


def pack_texts(inputs: dict[str, Any]) -> dict[str, Any]:
    """Pack a batch of padded texts, (B, T) each, for an LLM without image input: (1, length)."""
    ids, labels = inputs["input_ids"], inputs["labels"]
    keep = inputs["attention_mask"].bool()
    # ids take the place of embeddings
    rows = [SplicedRow(own[mask][:, None], of[mask]) for own, of, mask in zip(ids, labels, keep, strict=True)]
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
