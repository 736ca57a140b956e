"""Token ids of whole prompts, as the reference makes them, and labels by the places of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llava.mm_utils import tokenizer_image_token
from llava.train.labels.masks import mask_by_spans
from llava.train.labels.offsets import encode_with_starts
from llava.train.records import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = dict[str, Any]  # {"from": "human" or "gpt", "value": text}
Batch = dict[str, Any]  # input_ids and labels: a tensor (n, length) or a list of n tensors


def encode(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, has_image: bool) -> torch.Tensor:
    """Tokenize whole prompts into (n, length).

    Text is padded and truncated to the tokenizer's length; prompts with image tokens are neither (the
    collator cuts them).
    """
    if not has_image:
        return tokenizer(
            list(prompts),
            return_tensors="pt",
            padding="longest",
            max_length=tokenizer.model_max_length,
            truncation=True,
        ).input_ids
    rows = [image_ids(prompt, tokenizer) for prompt in prompts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise DataError(
            f"conversations with images have {lengths} tokens and cannot be stacked; "
            "preprocess them one at a time"
        )
    return torch.stack(rows)


def image_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Tokenize a prompt with image tokens: (length,)."""
    return torch.tensor(tokenizer_image_token(text, tokenizer), dtype=torch.long)


def counter(tokenizer: PreTrainedTokenizerBase, has_image: bool) -> Callable[[str], int]:
    """Return the function that counts the tokens of a piece of text, special tokens included."""
    if has_image:
        return lambda text: len(tokenizer_image_token(text, tokenizer))
    return lambda text: len(tokenizer(text).input_ids)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer puts a start token in front of every text."""
    return len(tokenizer("").input_ids) > 0


def label_spans(
    prompt: str, spans: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, has_image: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize and label one prompt: two tensors (length,)."""
    values, starts = encode_with_starts(prompt, tokenizer, has_image)
    ids = torch.tensor(values, dtype=torch.long)
    if not has_image and len(ids) > tokenizer.model_max_length:
        ids = encode([prompt], tokenizer, has_image)[0]
    return ids, mask_by_spans(ids, starts, prompt, spans)
