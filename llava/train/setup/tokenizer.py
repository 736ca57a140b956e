"""The tokenizer and the template of a run, as --version chooses them."""

from __future__ import annotations

from typing import Any

from llava import conversation as conversation_lib
from llava.model.tokenizer import load_tokenizer


def load_training_tokenizer(
    path: str, version: str, *, model_max_length: int, cache_dir: str | None = None
) -> tuple[Any, str]:
    """Load the tokenizer and choose the template of a --version; returns it and the template's key.

    Raises UserError for a version that is neither a template nor one of the reference's.
    """
    key = conversation_lib.key_for_training(version)
    tokenizer = load_tokenizer(
        path,
        use_fast=False,
        cache_dir=cache_dir,
        model_max_length=model_max_length,
        padding_side="right",
    )
    if version != "v0":
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer, key
