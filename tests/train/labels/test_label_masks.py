"""--label_masks: spans label exactly the answers, whatever they contain, and agree with the counts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from recorded_training import VARIANTS, dialog, prepared_tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.tokenizer import load_tokenizer
from llava.train.labels.offsets import NOWHERE, encode_with_starts
from llava.train.labels.preprocess import choose_label_masks, preprocess, reference_loses_answers, render

Pairs = list[tuple[str, str]]

EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
COUNTED = ("v1", "llava_v1", "v1_mmtag", "llama_2", "llava_llama_2", "mistral_instruct")
CHATML = ("mpt", "chatml_direct")
OLDEST = ("llava_v0", "v0_mmtag")
FOLDERS = ("vicuna-tiny", "llava-tiny-v1.5", "llava-tiny-v0", "llava-tiny-v1.6", "llava-tiny-v1.6-mistral")

# what confuses counts: separators, markers, special tokens, spaces of all kinds, characters of several bytes
TRICKY = st.sampled_from(
    ["</s>", "<s>", "<unk>", " ASSISTANT: ", "USER:", "[/INST] ", "[INST]", "<|im_end|>", "<|im_start|>"]
    + ["assistant\n", "###", "### Human: ", "\n", "\t", " ", "   ", "\u2581", "\u00e9", "\u65e5\u672c"]
    + ["\U0001f600", "e\u0301", "\ufb01", "<0x0A>", "<im_start>", "a", "The cat", '"', "'s"]
)
ANYTHING = st.one_of(
    st.lists(TRICKY, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.just(""),
).map(lambda text: text.replace("<image>", ""))
_MARKS = re.compile(r"</?s>|<unk>|ASSISTANT|USER|INST|im_|image")
ORDINARY = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
    st.lists(st.sampled_from(["The", "cat", "is", "caf\u00e9", "42", "(so)", "\u732b"]), min_size=1).map(
        " ".join
    ),
).filter(lambda text: text.strip() and not _MARKS.search(text))


def _turns(pairs: Pairs, image: bool) -> list[dict[str, str]]:
    turns = dialog(*(turn for q, a in pairs for turn in (("human", q), ("gpt", a))))
    if image and turns:
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return turns


def _labels(pairs: Pairs, tokenizer: Any, template: str, masks: str, image: bool) -> tuple[Any, Any]:
    batch = preprocess([_turns(pairs, image)], tokenizer, image, conv_templates[template], masks)
    return batch["input_ids"][0], batch["labels"][0]


def _text(piece: str) -> bytes:
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


def _learned(ids: Any, labels: Any, tokenizer: Any) -> list[str]:
    """Texts of the runs of supervised tokens, without spaces (legacy tokenizers add some)."""
    runs, before = [], False
    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        if label != IGNORE_INDEX:
            assert label == token
            runs += [] if before else [b""]
            runs[-1] += _text(tokenizer.convert_ids_to_tokens([token])[0])
        before = label != IGNORE_INDEX
    return [_without_spaces(run.decode()) for run in runs]


def _without_spaces(text: str) -> str:
    return text.replace(" ", "").replace("\u2581", "")


# ---- spans and the reference agree on ordinary conversations ----


@pytest.mark.parametrize("template", COUNTED)
@EXAMPLES
@given(
    variant=st.sampled_from([*VARIANTS, *FOLDERS]),
    pairs=st.lists(st.tuples(ORDINARY, ORDINARY), min_size=1, max_size=4),
    image=st.booleans(),
)
def test_spans_equal_the_reference(
    pairs: Pairs,
    image: bool,
    template: str,
    variant: str,
    variant_tokenizer: Callable[..., Any],
    checkpoints: Path,
) -> None:
    tokenizer = _load(variant, variant_tokenizer, checkpoints)
    ids, spans = _labels(pairs, tokenizer, template, "spans", image)
    same_ids, counted = _labels(pairs, tokenizer, template, "reference", image)
    assert torch.equal(ids, same_ids)
    assert torch.equal(spans, counted)


_TOKENIZERS: dict[str, Any] = {}


def _load(name: str, variant_tokenizer: Callable[..., Any], checkpoints: Path) -> Any:
    if name in VARIANTS:
        return variant_tokenizer(name)
    if name not in _TOKENIZERS:
        _TOKENIZERS[name] = prepared_tokenizer(checkpoints / name, 4096)
    return _TOKENIZERS[name]


# ---- spans, whatever the text contains ----


@pytest.mark.parametrize("template", [*COUNTED, *CHATML, *OLDEST])
@EXAMPLES
@given(
    variant=st.sampled_from([*VARIANTS]),
    pairs=st.lists(st.tuples(ANYTHING, ANYTHING), min_size=1, max_size=4),
    image=st.booleans(),
)
def test_spans_are_the_answers(
    pairs: Pairs, image: bool, template: str, variant: str, variant_tokenizer: Callable[..., Any]
) -> None:
    conv, tokenizer = conv_templates[template], variant_tokenizer(variant)
    if conv.sep_style is SeparatorStyle.LLAMA_2 and not pairs[0][0]:
        return  # this template cannot begin with an empty question
    ids, labels = _labels(pairs, tokenizer, template, "spans", image)
    end = {SeparatorStyle.TWO: "</s>", SeparatorStyle.LLAMA_2: "</s>", SeparatorStyle.MPT: "<|im_end|>"}
    mark = end.get(conv.sep_style, "\n###")
    answers = [_without_spaces(answer + mark) for _, answer in pairs if answer]
    learned = _learned(ids, labels, tokenizer)
    if mark == "<|im_end|>" and "chatml" not in variant:
        # several tokens here, of which the last may reach into the next mark
        learned = [text.removesuffix("<") if text.endswith("><") else text for text in learned]
    if conv.sep_style is SeparatorStyle.LLAMA_2:  # an empty question leaves nothing between two answers
        learned, answers = ["".join(learned)], ["".join(answers)]
    assert learned == answers


@pytest.mark.parametrize("template", ["v1", "llava_llama_2", *CHATML])
@EXAMPLES
@given(pairs=st.lists(st.tuples(ANYTHING, ANYTHING), min_size=1, max_size=4))
def test_spans_of_mpts_own_tokenizer(pairs: Pairs, template: str, checkpoints: Path) -> None:
    conv, tokenizer = conv_templates[template], _load("llava-tiny-mpt", lambda: None, checkpoints)
    if conv.sep_style is SeparatorStyle.LLAMA_2 and not pairs[0][0]:
        return
    ids, labels = _labels(pairs, tokenizer, template, "spans", False)
    prompt, answers = render(_turns(pairs, False), conv)
    byte_of = {char: value for value, char in bytes_to_unicode().items()}
    place, expected = 0, []
    for token in tokenizer.convert_ids_to_tokens(ids.tolist()):  # one character for each byte of the text
        begins = [prompt[begin - 1] == " " for begin, _ in answers]
        ranges = [
            (len(prompt[: begin - space].encode()), len(prompt[:end].encode()))
            for (begin, end), space in zip(answers, begins, strict=True)
        ]
        expected.append(any(begin <= place < end for begin, end in ranges))
        place += len(token) if all(char in byte_of for char in token) else len(token.encode())
    assume(place == len(prompt.encode()))  # else its normalizer has changed the text
    assert (labels != IGNORE_INDEX).tolist() == expected


@EXAMPLES
@given(
    variant=st.sampled_from([*VARIANTS, *FOLDERS, "llava-tiny-mpt"]),
    text=st.lists(st.one_of(TRICKY, st.just("<image>"))).map("".join),
    has_image=st.booleans(),
)
def test_tokens_begin_where_their_text_is(
    text: str, has_image: bool, variant: str, variant_tokenizer: Callable[..., Any], checkpoints: Path
) -> None:
    tokenizer = _load(variant, variant_tokenizer, checkpoints)
    ids, starts = encode_with_starts(text, tokenizer, has_image)
    assert ids == (tokenizer_image_token(text, tokenizer) if has_image else tokenizer(text).input_ids)
    assert all(
        (start == NOWHERE) >= (token == IMAGE_TOKEN_INDEX) for token, start in zip(ids, starts, strict=True)
    )
    if variant == "llava-tiny-mpt":
        return
    for token, start in zip(ids, starts, strict=True):
        piece = b"" if start == NOWHERE else _text(tokenizer.convert_ids_to_tokens([token])[0])
        if len(piece) > 1:  # a space may have been added in front
            rest = text[start:].replace("\u2581", " ").encode()
            assert rest.startswith((piece, piece.removeprefix(b" ")))


# ---- the choice, and what the reference loses ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_is_reliable_except_in_chatml(variant: str, variant_tokenizer: Callable[..., Any]) -> None:
    tokenizer = variant_tokenizer(variant)
    for template, conv in conv_templates.items():
        assert reference_loses_answers(conv, tokenizer) == (conv.sep_style is SeparatorStyle.MPT), template


def test_reference_loses_everything_with_mpts_tokenizer(checkpoints: Path) -> None:
    tokenizer = prepared_tokenizer(checkpoints / "llava-tiny-mpt")
    assert all(reference_loses_answers(conv_templates[key], tokenizer) for key in (*COUNTED, *CHATML))


def test_choice(
    variant_tokenizer: Callable[..., Any], checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, mpt = variant_tokenizer("plain"), prepared_tokenizer(checkpoints / "llava-tiny-mpt")
    assert choose_label_masks(None, conv_templates["v1"], plain) == "reference"
    assert choose_label_masks("spans", conv_templates["v1"], plain) == "spans"
    assert not caplog.records
    assert choose_label_masks(None, conv_templates["mpt"], mpt) == "spans"
    assert "--label_masks spans is taken" in caplog.text
    assert choose_label_masks("reference", conv_templates["mpt"], mpt) == "reference"


def test_tokenizer_without_a_pad_token(checkpoints: Path) -> None:
    """Version v0 adds one only when the model is there."""
    tokenizer = load_tokenizer(checkpoints / "vicuna-tiny")
    tokenizer.pad_token = None
    assert choose_label_masks(None, conv_templates["v1"], tokenizer) == "reference"


def test_confused_conversation(
    variant_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = variant_tokenizer("plain")
    pairs = [("What ends a turn?", "It is </s> here."), ("And?", "No more.")]
    with caplog.at_level(logging.WARNING, logger="llava"):
        counted = preprocess([_turns(pairs, False)], tokenizer, False, conv_templates["v1"])["labels"]
    assert (counted == IGNORE_INDEX).all() and "confuses the counts of the reference" in caplog.text
    assert torch.equal(_labels(pairs, tokenizer, "v1", "reference", False)[1], counted[0])
    ids, labels = _labels(pairs, tokenizer, "v1", "spans", False)
    assert tokenizer.decode(labels[labels != IGNORE_INDEX]) == "It is </s> here.</s> No more.</s>"


@pytest.mark.parametrize("masks", ["reference", "spans"])
def test_cut_and_padded_like_the_tokenizer(masks: str, variant_tokenizer: Callable[..., Any]) -> None:
    tokenizer = variant_tokenizer("plain", 60)
    sources = [_turns([("Q", "A " * 50)], False), _turns([("Q", "B")], False)]
    batch = preprocess(sources, tokenizer, False, conv_templates["v1"], masks)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 60)
    row, labels = batch["input_ids"][1], batch["labels"][1]
    assert (labels[row == tokenizer.pad_token_id] == IGNORE_INDEX).all()
    assert tokenizer.decode(labels[labels != IGNORE_INDEX]) == "B</s>"


def test_an_image_token_in_a_caption(variant_tokenizer: Callable[..., Any]) -> None:
    tokenizer = variant_tokenizer("plain")
    turns = [dialog(("human", "<image>"), ("gpt", "One <image> two"))]
    ids, labels = (
        row[0] for row in preprocess(turns, tokenizer, True, conv_templates["plain"], "spans").values()
    )
    assert (ids == IMAGE_TOKEN_INDEX).sum() == 2 and (labels != IMAGE_TOKEN_INDEX).all()
    assert tokenizer.decode(labels[labels != IGNORE_INDEX]).split() == ["One", "two"]
