"""How tokens are spelled: the bytes of an answer's tokens joined are the answer, whatever the vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.inference.engine import Token
from llava.model.tokenizer import load_tokenizer
from llava.serve.openai.tokens import chat_logprobs, completion_logprobs, spell

TEXT = "Hello there, wörld! 日本 \N{PARTY POPPER} é\n  two  blanks"


@pytest.mark.parametrize("folder", ["llava-tiny-v1.5", "llava-tiny-v1.6-mistral", "llava-tiny-mpt"])
def test_bytes_of_tokens_join_to_the_text(folder: str, checkpoints: Path) -> None:
    tokenizer = load_tokenizer(str(checkpoints / folder))
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert len(ids) > 10
    joined = b"".join(spell(tokenizer, one)[1] for one in ids)
    assert joined.decode().strip() == tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
    words = [spell(tokenizer, one)[0] for one in ids]
    assert any(one.startswith("bytes:\\x") for one in words)  # a part of a character
    assert any(one.startswith(" ") for one in words)


@pytest.mark.parametrize("folder", ["llava-tiny-v1.5", "llava-tiny-mpt"])
def test_offsets_are_places_in_the_text(folder: str, checkpoints: Path) -> None:
    """Bytes of one character stand where it does, and special tokens take no place."""
    tokenizer = load_tokenizer(str(checkpoints / folder))
    ids = [*tokenizer(TEXT, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    told = completion_logprobs(tokenizer, [Token(one, -0.5) for one in ids], 7)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    blank = 1 if told["tokens"][0].startswith(" ") else 0  # that decoding takes from the first word
    places = dict(zip(told["tokens"], told["text_offset"], strict=True))
    for word in (one for one in told["tokens"] if one.strip().isascii() and len(one.strip()) > 2):
        if not word.startswith(("bytes:", "<")) and told["tokens"].count(word) == 1:
            assert (" " * blank + text).startswith(word, places[word] - 7), word
    assert told["text_offset"][-1] - 7 == len(text) + blank


@pytest.mark.parametrize("folder", ["llava-tiny-v1.5", "llava-tiny-mpt"])
def test_special_and_unknown_ids_have_a_spelling(folder: str, checkpoints: Path) -> None:
    tokenizer = load_tokenizer(str(checkpoints / folder))
    assert spell(tokenizer, tokenizer.eos_token_id)[0] == tokenizer.eos_token
    assert spell(tokenizer, 10**6) == ("<1000000>", b"")


def test_an_impossible_token_is_a_number_of_json(checkpoints: Path) -> None:
    tokenizer = load_tokenizer(str(checkpoints / "llava-tiny-v1.5"))
    token = Token(5, float("-inf"), ((6, float("-inf")),))
    (entry,) = chat_logprobs(tokenizer, [token])["content"]
    assert entry["logprob"] == -9999.0 and entry["top_logprobs"][0]["logprob"] == -9999.0
    assert completion_logprobs(tokenizer, [token], 3)["token_logprobs"] == [-9999.0]
