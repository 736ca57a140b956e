"""Token ids of dialogs piece by piece: answers by themselves, control tokens only from the template.

Whole-text tokenizing goes wrong where an answer begins with a character that melts into one token with the
end of its header, as a newline does, and where a text spells out a control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation.styles import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """Token ids, IMAGE_TOKEN_INDEX for an image, and which of them are learned: two lists (length,)."""

    ids: list[int]
    supervised: list[bool]


def encode_pieces(
    pieces: Sequence[Piece],
    tokenizer: PreTrainedTokenizerBase,
    *,
    has_image: bool = True,
    start_token: bool = False,
) -> Encoded:
    """Tokenize a rendered dialog.

    What is learned and what is not are tokenized apart, as while asking, where the prompt comes first and the
    answer later. has_image: `<image>` stands for an image, else it is text. start_token: put the start token
    in front that the tokenizer adds to a text, unless the rendering begins with it.
    """
    ids: list[int] = []
    supervised: list[bool] = []
    for learned, group in groupby(pieces, key=lambda one: one.supervised):
        for number, part in enumerate(_split_at_images(group) if has_image else [list(group)]):
            if number:
                ids.append(IMAGE_TOKEN_INDEX)
                supervised.append(False)
            new = _encode(part, tokenizer, first=not ids)
            ids += new
            supervised += [learned] * len(new)
    if start_token and adds_start(tokenizer) and ids[:1] != [tokenizer.bos_token_id]:
        return Encoded([tokenizer.bos_token_id, *ids], [False, *supervised])
    return Encoded(ids, supervised)


def adds_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer puts a start token in front of every text itself."""
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def _split_at_images(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Cut pieces at `<image>`; tokens that the library puts round an image are the template's."""
    parts: list[list[Piece]] = [[]]
    for piece in pieces:
        texts = piece.text.split(DEFAULT_IMAGE_TOKEN)
        for number, text in enumerate(texts):
            if number:
                parts.append([])
            wraps_next = number + 1 < len(texts) and texts[number + 1].startswith(DEFAULT_IM_END_TOKEN)
            opens = wraps_next and text.endswith(DEFAULT_IM_START_TOKEN)
            closes = bool(number) and text.startswith(DEFAULT_IM_END_TOKEN)
            closes = closes and texts[number - 1].endswith(DEFAULT_IM_START_TOKEN)
            if closes:
                parts[-1].append(Piece(DEFAULT_IM_END_TOKEN, piece.supervised, False))
                text = text.removeprefix(DEFAULT_IM_END_TOKEN)
            parts[-1].append(
                piece._replace(text=text.removesuffix(DEFAULT_IM_START_TOKEN) if opens else text)
            )
            if opens:
                parts[-1].append(Piece(DEFAULT_IM_START_TOKEN, piece.supervised, False))
    return parts


def _encode(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase, *, first: bool) -> list[int]:
    """Tokenize pieces as one text, but for control tokens in what was said: they are cut in two."""
    ids: list[int] = []
    for number, text in enumerate(_cut_control_tokens(pieces, tokenizer)):
        if text:
            ids += _plain(text, tokenizer) if first and not number else _continued(text, tokenizer)
    return ids


def _cut_control_tokens(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    pattern = known_tokens(tokenizer).control
    text = "".join(piece.text for piece in pieces)
    cuts, begin = [0], 0
    for piece in pieces:
        place = 0
        while piece.said and (found := pattern.search(piece.text, place)):
            place = found.start() + 1
            cuts.append(begin + place)
        begin += len(piece.text)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


@dataclass(frozen=True)
class KnownTokens:
    """What a tokenizer's added tokens are; found out once, for large vocabularies take milliseconds.

    control: finds the special ones. Those that were added, but are not special, are words: `<think>`,
    `<tool_call>`. added: all of them, the longest first. anchor: a text behind which texts keep their own
    tokens, and its length in tokens. size: how many tokens there are.
    """

    control: re.Pattern[str]
    added: tuple[str, ...]
    anchor: tuple[str, int]
    size: int


def known_tokens(tokenizer: PreTrainedTokenizerBase) -> KnownTokens:
    """Return what a tokenizer's added tokens are, again when some were added since."""
    known = _known_tokens(tokenizer)
    # counting takes milliseconds as well, and a new token stands behind the others
    grown = (
        tokenizer.convert_ids_to_tokens(known.size) is not None
        if tokenizer.is_fast
        else len(tokenizer) != known.size
    )
    if grown:
        _known_tokens.cache_clear()
        known = _known_tokens(tokenizer)
    return known


@lru_cache(maxsize=8)
def _known_tokens(tokenizer: PreTrainedTokenizerBase) -> KnownTokens:
    tokens = list(tokenizer.added_tokens_decoder.values())
    special = {str(token) for token in tokens if token.special} | set(tokenizer.all_special_tokens)
    long = sorted((token for token in special if len(token) > 1), key=lambda token: (-len(token), token))
    return KnownTokens(
        re.compile("|".join(map(re.escape, long)) or r"(?!)"),
        tuple(sorted(map(str, tokens), key=len, reverse=True)),
        _anchor(tokenizer, [str(token) for token in tokens if token.special]),
        len(tokenizer),
    )


def _plain(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _continued(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenize text that stands behind other text: without the space that some tokenizers put in front."""
    anchor, length = known_tokens(tokenizer).anchor
    return _plain(anchor + text, tokenizer)[length:]


# texts that a continuation is tried with: a word, blanks, lines, another script
_TRIALS = ("ab c", " ab", "\nab", "  a", "\n", "Ünï", "日本")


def _anchor(tokenizer: PreTrainedTokenizerBase, special: Sequence[str]) -> tuple[str, int]:
    """Return a text behind which texts keep their own tokens, and its length in tokens."""
    for anchor in ("", *special[:4], "\n"):
        head = _plain(anchor, tokenizer) if anchor else []
        if all(_keeps(text, anchor, head, tokenizer) for text in _TRIALS):
            return anchor, len(head)
    return "", 0


def _keeps(text: str, anchor: str, head: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a text behind the anchor has tokens that are its own, no more and no less."""
    ids = _plain(anchor + text, tokenizer)
    before = _plain("x", tokenizer)
    joined = tokenizer.decode([*before, *ids[len(head) :]], clean_up_tokenization_spaces=False)
    alone = tokenizer.decode(before, clean_up_tokenization_spaces=False)
    return ids[: len(head)] == head and joined == alone + text
