"""Where each token of a prompt begins in its text, for fast tokenizers and for Llama's sentencepiece one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.model.tokenizer import SPACE, LlamaTokenizer
from llava.train.records import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The position of tokens that stand for no text: start and end tokens the tokenizer adds, and images.
NOWHERE = -1

# sentencepiece writes a character that is in no piece as its bytes; only the first of them takes a place
_BYTE_PLACES = {f"<0x{value:02X}>": 0 if 0x80 <= value < 0xC0 else 1 for value in range(256)}


def encode_with_starts(
    prompt: str, tokenizer: PreTrainedTokenizerBase, has_image: bool
) -> tuple[list[int], list[int]]:
    """Tokenize a prompt as training does, without padding or cutting; image tokens become IMAGE_TOKEN_INDEX.

    Returns the ids and where in the prompt each token begins, both (length,). A space that a tokenizer joins
    to the word behind it is part of that word's token. Raises DataError for a tokenizer that cannot tell.
    """
    ids: list[int] = []
    starts: list[int] = []
    place, drops_start = 0, False
    for number, text in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN) if has_image else [prompt]):
        chunk, chunk_starts = _encode(text, tokenizer)
        begins = bool(chunk) and chunk[0] == tokenizer.bos_token_id
        if number:
            ids.append(IMAGE_TOKEN_INDEX)
            starts.append(NOWHERE)
            place += len(DEFAULT_IMAGE_TOKEN)
        else:
            drops_start = begins
        skipped = int(number > 0 and drops_start and begins)  # as in tokenizer_image_token
        ids += chunk[skipped:]
        starts += [NOWHERE if start < 0 else place + start for start in chunk_starts[skipped:]]
        place += len(text)
    return ids, starts


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    if isinstance(tokenizer, LlamaTokenizer):
        return _encode_llama(text, tokenizer)
    if getattr(tokenizer, "is_fast", False):
        return _encode_fast(text, tokenizer)
    raise DataError(
        f"{type(tokenizer).__name__} gives no character positions, so answers cannot be located; use a fast "
        "tokenizer, or --label_masks reference"
    )


def _encode_fast(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    starts, reached = [], 0
    for (begin, end), is_added in zip(encoded.offset_mapping, encoded.special_tokens_mask, strict=True):
        # tokenizers that leave spaces out of the positions have them in the token all the same
        starts.append(NOWHERE if is_added else min(begin, reached))
        reached = max(reached, end)
    return encoded.input_ids, starts


def _encode_llama(text: str, tokenizer: LlamaTokenizer) -> tuple[list[int], list[int]]:
    pieces = tokenizer.tokenize(text)
    ids = tokenizer.build_inputs_with_special_tokens(tokenizer.convert_tokens_to_ids(pieces))
    head, tail = int(tokenizer.add_bos_token), int(tokenizer.add_eos_token)
    return ids, [NOWHERE] * head + _piece_starts(text, pieces, tokenizer) + [NOWHERE] * tail


def _piece_starts(text: str, pieces: list[str], tokenizer: LlamaTokenizer) -> list[int]:
    """Walk through a text with its pieces: where each begins.

    Pieces are the text itself, except that a space in front is added: to the text, or in legacy mode to every
    part between added tokens.
    """
    added = tokenizer.added_tokens_encoder.keys() | set(tokenizer.all_special_tokens)
    added_spaces = 1 if tokenizer.legacy else 0
    place = 0 if tokenizer.legacy or not pieces or not pieces[0].startswith(SPACE) else -1
    fresh = added_spaces  # the added space of this part that is still to come
    starts = []
    for piece in pieces:
        if piece in added:
            found = text.find(piece, max(place, 0))
            if found < 0 or text[max(place, 0) : found].strip():  # spaces may be dropped in front of it
                raise _lost_track(tokenizer, piece)
            starts.append(found)
            place, fresh = found + len(piece), added_spaces
            continue
        starts.append(max(place, 0) - (_BYTE_PLACES.get(piece) == 0))
        place += _BYTE_PLACES.get(piece, len(piece)) - fresh
        fresh = 0
    if text[max(place, 0) :].strip() or place > len(text):
        raise _lost_track(tokenizer, pieces[-1])
    return starts


def _lost_track(tokenizer: PreTrainedTokenizerBase, piece: str) -> DataError:
    return DataError(
        f"the pieces of {type(tokenizer).__name__} do not join to the text again (at {piece!r}), so answers "
        "cannot be located; use --label_masks reference"
    )
