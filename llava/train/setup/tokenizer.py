"""The tokenizer and the template of a run, as --version chooses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llava import conversation as conversation_lib
from llava.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    if version != "v0" and not _may_pad(tokenizer, conversation_lib.conv_templates[key]):
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer, key


def _may_pad(tokenizer: PreTrainedTokenizerBase, empty: conversation_lib.Conversation) -> bool:
    """Tell whether a tokenizer's own padding is used: in templates that are tokenized piece by piece.

    The reference pads with <unk>. Where padding is, attention is not: it must be no token that the template
    writes, as SmolLM2's is.
    """
    pad = tokenizer.pad_token
    if pad is None or pad in (tokenizer.eos_token, tokenizer.bos_token):
        return False
    conv = conversation_lib.conversation_for(empty, tokenizer)
    if not conversation_lib.style_of(conv.sep_style).in_pieces:
        return False
    conv = conv.copy()
    conv.append_message(conv.roles[0], "a")
    conv.append_message(conv.roles[1], "b")
    return pad not in conv.get_prompt()
