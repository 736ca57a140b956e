"""From conversations to input ids and labels: which tokens are trained on, for every template version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llava import conversation as conversation_lib
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle
from llava.mm_utils import tokenizer_image_token
from llava.train.masks import LLAMA_2_RULE, MPT_RULE, V1_RULE, MaskRule, mask_by_counting, mask_by_spans
from llava.train.records import DataError

Turn = dict[str, Any]  # {"from": "human" or "gpt", "value": text}
Batch = dict[str, Any]  # input_ids and labels: a tensor (n, length) or a list of n tensors

# A public name of the reference; transformers 5 needs tokenizers of 0.22 or newer.
IS_TOKENIZER_GREATER_THAN_0_14 = True

V0_SIGNAL = "### "


# ---- text ----


def preprocess_multimodal(
    sources: Sequence[Sequence[Turn]],
    data_args: Any,
    *,
    keep_places: bool = False,
    conv: Conversation | None = None,
) -> Sequence[Sequence[Turn]]:
    """Bring the `<image>` marks of each turn into the form the model is trained on; returns new turns.

    All marks of a turn become one mark in front of its text, as in the reference. With `keep_places` (records
    with several images) every mark stays where it stands. Nothing is changed when `data_args.is_multimodal`
    is false.
    """
    if not data_args.is_multimodal:
        return sources
    mark = DEFAULT_IMAGE_TOKEN
    if data_args.mm_use_im_start_end:
        mark = f"{DEFAULT_IM_START_TOKEN}{mark}{DEFAULT_IM_END_TOKEN}"
    if "mmtag" in _current(conv).version:
        mark = f"<Image>{mark}</Image>"

    def convert(turn: Turn) -> Turn:
        text = turn["value"]
        if DEFAULT_IMAGE_TOKEN not in text:
            return turn
        if not keep_places:
            text = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
        return {**turn, "value": text.replace(DEFAULT_IMAGE_TOKEN, mark)}

    return [[convert(turn) for turn in source] for source in sources]


def _speaking_turns(source: Sequence[Turn], conv: Conversation) -> list[tuple[str, str]]:
    """Check the order of the turns; returns (role name in the template, text).

    A first turn that is not the human's is dropped, as in the reference. Raises DataError for an empty
    conversation, an unknown speaker or two turns of one speaker in a row.
    """
    roles = {"human": conv.roles[0], "gpt": conv.roles[1]}
    if not source:
        raise DataError("a conversation has no turns; expected a question and an answer")
    for number, turn in enumerate(source):
        if turn["from"] not in roles:
            raise DataError(f"turn {number} is from {turn['from']!r}; expected 'human' or 'gpt'")
    start = 0 if source[0]["from"] == "human" else 1
    for number, turn in enumerate(source[start:]):
        expected = ("human", "gpt")[number % 2]
        if turn["from"] != expected:
            raise DataError(
                f"turn {number + start} is from {turn['from']!r} where {expected!r} was expected; "
                "human and gpt must alternate"
            )
    return [(roles[turn["from"]], turn["value"]) for turn in source[start:]]


def render(source: Sequence[Turn], conv: Conversation) -> tuple[str, list[tuple[int, int]]]:
    """Render one conversation; returns the prompt and the character range of each answer with its end mark.

    Raises UserError for turns that the template cannot hold.
    """
    dialog = conv.copy()
    dialog.messages, dialog.offset = [], 0  # without the template's own examples
    for role, text in _speaking_turns(source, conv):
        dialog.append_message(role, text)
    prompt, answers = "", []
    for piece, supervised in dialog.spans():
        if supervised:
            answers.append((len(prompt), len(prompt) + len(piece)))
        prompt += piece
    return prompt, answers


# ---- ids ----


def _encode(prompts: Sequence[str], tokenizer: Any, has_image: bool) -> torch.Tensor:
    """Tokenize whole prompts into (n, length).

    Text is padded and truncated to the tokenizer's length; prompts with image marks are neither (the collator
    cuts them).
    """
    if not has_image:
        return tokenizer(
            list(prompts),
            return_tensors="pt",
            padding="longest",
            max_length=tokenizer.model_max_length,
            truncation=True,
        ).input_ids
    rows = [_image_ids(prompt, tokenizer) for prompt in prompts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise DataError(
            f"conversations with images have {lengths} tokens and cannot be stacked; "
            "preprocess them one at a time"
        )
    return torch.stack(rows)


def _image_ids(text: str, tokenizer: Any) -> torch.Tensor:
    """Tokenize a prompt with image marks: (length,)."""
    return torch.tensor(tokenizer_image_token(text, tokenizer), dtype=torch.long)


def _counter(tokenizer: Any, has_image: bool) -> Callable[[str], int]:
    """Return the function that counts the tokens of a piece of text, special tokens included."""
    if has_image:
        return lambda text: len(tokenizer_image_token(text, tokenizer))
    return lambda text: len(tokenizer(text).input_ids)


def _adds_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer puts a start token in front of every text."""
    return len(tokenizer("").input_ids) > 0


# ---- the template families ----


def _preprocess_rounds(
    sources: Sequence[Sequence[Turn]], tokenizer: Any, has_image: bool, conv: Conversation, rule: MaskRule
) -> Batch:
    """Render, tokenize and label conversations of one template family."""
    rendered = [render(source, conv) for source in sources]
    input_ids = _encode([prompt for prompt, _ in rendered], tokenizer, has_image)  # (n, length)
    count = _counter(tokenizer, has_image)
    by_counting = _adds_bos(tokenizer)
    labels = [
        mask_by_counting(ids, prompt, conv, tokenizer, rule, count)
        if by_counting
        else mask_by_spans(ids, prompt, spans, tokenizer, has_image)
        for ids, (prompt, spans) in zip(input_ids, rendered, strict=True)
    ]
    return {"input_ids": input_ids, "labels": torch.stack(labels)}


def _current(conv: Conversation | None) -> Conversation:
    """Return `conv`, or the template that is the default now (other projects set it)."""
    return conversation_lib.default_conversation if conv is None else conv


def _require_style(conv: Conversation, style: SeparatorStyle, function: str) -> None:
    if conv.sep_style != style:
        raise DataError(
            f"{function} needs a template of style {style.name}, the current one has {conv.sep_style.name}; "
            "choose another --version"
        )


def preprocess_v1(
    sources: Sequence[Sequence[Turn]],
    tokenizer: Any,
    has_image: bool = False,
    conv: Conversation | None = None,
) -> Batch:
    """Tokenize and label conversations in a "USER: ... ASSISTANT: ...</s>" template."""
    conv = _current(conv)
    _require_style(conv, SeparatorStyle.TWO, "preprocess_v1")
    return _preprocess_rounds(sources, tokenizer, has_image, conv, V1_RULE)


def preprocess_llama_2(
    sources: Sequence[Sequence[Turn]],
    tokenizer: Any,
    has_image: bool = False,
    conv: Conversation | None = None,
) -> Batch:
    """Tokenize and label conversations in an "[INST] ... [/INST] ...</s>" template."""
    conv = _current(conv)
    _require_style(conv, SeparatorStyle.LLAMA_2, "preprocess_llama_2")
    return _preprocess_rounds(sources, tokenizer, has_image, conv, LLAMA_2_RULE)


def preprocess_mpt(
    sources: Sequence[Sequence[Turn]],
    tokenizer: Any,
    has_image: bool = False,
    conv: Conversation | None = None,
) -> Batch:
    """Tokenize and label conversations in a ChatML template."""
    conv = _current(conv)
    _require_style(conv, SeparatorStyle.MPT, "preprocess_mpt")
    return _preprocess_rounds(sources, tokenizer, has_image, conv, MPT_RULE)


def preprocess_plain(
    sources: Sequence[Sequence[Turn]], tokenizer: Any, conv: Conversation | None = None
) -> Batch:
    """Tokenize and label captions: one image, then the caption; the question's text is discarded.

    Returns lists of tensors (length,). Raises DataError unless there are two turns with an image in the
    first.
    """
    conv = _current(conv)
    input_ids, labels = [], []
    for source in sources:
        if len(source) != 2:
            raise DataError(
                f"the plain template needs one question and one caption, found {len(source)} turns"
            )
        if DEFAULT_IMAGE_TOKEN not in source[0]["value"]:
            raise DataError(f"the plain template needs {DEFAULT_IMAGE_TOKEN} in the first turn, found none")
        text = DEFAULT_IMAGE_TOKEN + source[1]["value"] + conv.sep
        ids = _image_ids(text, tokenizer)
        masked = ids.clone()
        masked[: len(tokenizer_image_token(DEFAULT_IMAGE_TOKEN, tokenizer))] = IGNORE_INDEX
        input_ids.append(ids)
        labels.append(masked)
    return {"input_ids": input_ids, "labels": labels}


# ---- the first template version: "### Human: ...", labels by adding up segment lengths ----


def _tokenize_fn(strings: Sequence[str], tokenizer: Any) -> Batch:
    """Tokenize each string on its own; returns ids, equal labels and the tokens that are not padding."""
    ids = [
        tokenizer(
            text,
            return_tensors="pt",
            padding="longest",
            max_length=tokenizer.model_max_length,
            truncation=True,
        ).input_ids[0]
        for text in strings
    ]
    lengths = [int(row.ne(tokenizer.pad_token_id).sum()) for row in ids]
    return {"input_ids": ids, "labels": ids, "input_ids_lens": lengths, "labels_lens": lengths}


def _mask_targets(target: torch.Tensor, tokenized_lens: Sequence[int], speakers: Sequence[str]) -> None:
    """Mask header and questions in place; tokenized_lens: the header's length, then one a speaker.

    The first two tokens of a question stay, as in the reference; checkpoints were trained with them.
    """
    position = tokenized_lens[0]
    target[:position] = IGNORE_INDEX
    for length, speaker in zip(tokenized_lens[1:], speakers, strict=True):
        if speaker == "human":
            target[position + 2 : position + length] = IGNORE_INDEX
        position += length


def _signal_turns(source: Sequence[Turn], conv: Conversation) -> list[str]:
    """Write each turn as "### Role: text" and a newline; other speakers are 'unknown'."""
    names = {"human": conv.roles[0], "gpt": conv.roles[1]}
    return [
        f"{V0_SIGNAL}{names.get(str(turn['from']).lower(), 'unknown')}: {turn['value']}\n" for turn in source
    ]


def _add_speaker_and_signal(header: str, source: Sequence[Turn], get_conversation: bool = True) -> str:
    """Write a dialog in the first template; the turns stay as they are (the reference rewrote them)."""
    if not get_conversation:
        return header
    return header + "".join(_signal_turns(source, conversation_lib.default_conversation)) + V0_SIGNAL


def _preprocess_v0(
    sources: Sequence[Sequence[Turn]], tokenizer: Any, has_image: bool, conv: Conversation
) -> Batch:
    """Tokenize and label conversations in the first template; returns lists of tensors (length,)."""
    header = f"{conv.system}\n\n"
    input_ids, labels = [], []
    for source in sources:
        segments = [header, *_signal_turns(source, conv)]
        text = "".join(segments) + V0_SIGNAL
        if has_image:
            ids = _image_ids(text, tokenizer)
            lengths = [len(tokenizer_image_token(segment, tokenizer)) for segment in segments]
        else:
            ids = _tokenize_fn([text], tokenizer)["input_ids"][0]
            lengths = _tokenize_fn(segments, tokenizer)["input_ids_lens"]
        masked = ids.clone()
        _mask_targets(masked, lengths, [turn["from"] for turn in source])
        input_ids.append(ids)
        labels.append(masked)
    return {"input_ids": input_ids, "labels": labels}


def preprocess(
    sources: Sequence[Sequence[Turn]],
    tokenizer: Any,
    has_image: bool = False,
    conv: Conversation | None = None,
) -> Batch:
    """Tokenize and label conversations in a template (default: conversation.default_conversation, read now).

    Returns input_ids and labels; a label is its input id or IGNORE_INDEX. Raises DataError for turns the
    template cannot hold.
    """
    conv = _current(conv)
    if conv.sep_style == SeparatorStyle.PLAIN:
        return preprocess_plain(sources, tokenizer, conv)
    if conv.sep_style == SeparatorStyle.LLAMA_2:
        return preprocess_llama_2(sources, tokenizer, has_image, conv)
    if conv.version.startswith("v1"):
        return preprocess_v1(sources, tokenizer, has_image, conv)
    if conv.version == "mpt":
        return preprocess_mpt(sources, tokenizer, has_image, conv)
    return _preprocess_v0(sources, tokenizer, has_image, conv)
