"""How single tokens are spelled in logprobs: their text and their bytes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from llava.inference.engine import Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "\u2581"  # SentencePiece's blank


def spell(tokenizer: PreTrainedTokenizerBase, token: int) -> tuple[str, bytes]:
    """Return the text of a token and its bytes; the text of a part of a character is written as bytes."""
    # a model may have more rows than the tokenizer has tokens; SentencePiece raises for those
    piece = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if piece is None:
        return f"<{token}>", b""
    if found := _BYTE.fullmatch(piece):  # SentencePiece's byte fallback
        raw = bytes([int(found[1], 16)])
    elif token in tokenizer.all_special_ids or piece in tokenizer.get_added_vocab():
        raw = piece.encode()
    elif all(letter in _byte_letters() for letter in piece):
        decoded = tokenizer.decode([token])
        # a byte-level vocabulary writes blanks as a letter of its own; others have no such letters
        raw = (
            bytes(_byte_letters()[one] for one in piece) if _is_byte_level(piece, decoded) else piece.encode()
        )
    else:
        raw = piece.replace(_BLANK, " ").encode()
    try:
        return raw.decode(), raw
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{one:02x}" for one in raw), raw


def _is_byte_level(piece: str, decoded: str) -> bool:
    return piece != decoded


@cache
def _byte_letters() -> dict[str, int]:
    """Map the letters of byte-level vocabularies (GPT-2's) to their bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(one): one for one in visible}
    hidden = [one for one in range(256) if one not in visible]
    return letters | {chr(256 + index): one for index, one in enumerate(hidden)}


def chat_logprobs(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the logprobs of /v1/chat/completions and of /v1/responses."""
    return {"content": [_entry(tokenizer, one) for one in tokens], "refusal": None}


def _entry(tokenizer: PreTrainedTokenizerBase, token: Token) -> dict[str, Any]:
    own = _spelled(tokenizer, token.id, token.logprob)
    return {**own, "top_logprobs": [_spelled(tokenizer, *one) for one in token.top]}


def _spelled(tokenizer: PreTrainedTokenizerBase, token: int, logprob: float | None) -> dict[str, Any]:
    text, raw = spell(tokenizer, token)
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}


def completion_logprobs(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token], offset: int
) -> dict[str, Any]:
    """Return the logprobs of /v1/completions; offset: of the first token in the text.

    The bytes of one character stand where it does; special tokens are not in the text.
    """
    words, places = [], []
    decoder, special = codecs.getincrementaldecoder("utf-8")("replace"), set(tokenizer.all_special_ids)
    for token in tokens:
        word, raw = spell(tokenizer, token.id)
        words.append(word)
        places.append(offset)
        offset += 0 if token.id in special else len(decoder.decode(raw))
    return {
        "tokens": words,
        "token_logprobs": [_finite(one.logprob) for one in tokens],
        "top_logprobs": [
            {spell(tokenizer, token)[0]: _finite(value) for token, value in one.top} for one in tokens
        ],
        "text_offset": places,
    }


def _finite(logprob: float | None) -> float:
    """Return a number that JSON has: an impossible token has minus infinity, which OpenAI writes as -9999."""
    return max(-9999.0, -9999.0 if logprob is None else logprob)
