"""From conversations to input ids and labels: which tokens are trained on, for every template version."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from llava import conversation as conversation_lib
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import (
    Conversation,
    SeparatorStyle,
    check_caption,
    encode_pieces,
    style_of,
    template_of,
)
from llava.mm_utils import tokenizer_image_token
from llava.train.labels.encoding import Batch, Turn, adds_bos, counter, encode, image_ids, label_spans
from llava.train.labels.masks import LLAMA_2_RULE, MPT_RULE, V1_RULE, MaskRule, mask_by_counting
from llava.train.labels.preprocess_v0 import (
    V0_SIGNAL,
    _add_speaker_and_signal,
    _mask_targets,
    _tokenize_fn,
    preprocess_v0,
)
from llava.train.plan import DataSettings
from llava.train.records import DataError
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

__all__ = [
    "IS_TOKENIZER_GREATER_THAN_0_14",
    "V0_SIGNAL",
    "Batch",
    "Turn",
    "_add_speaker_and_signal",
    "_mask_targets",
    "_tokenize_fn",
    "choose_label_masks",
    "preprocess",
    "preprocess_llama_2",
    "preprocess_mpt",
    "preprocess_multimodal",
    "preprocess_plain",
    "preprocess_v1",
    "reference_loses_answers",
    "render",
]

# A public name of the reference; transformers 5 needs tokenizers of 0.22 or newer.
IS_TOKENIZER_GREATER_THAN_0_14 = True


# ---- text ----


def preprocess_multimodal(
    sources: Sequence[Sequence[Turn]],
    data_args: DataSettings,
    *,
    keep_places: bool = False,
    conv: Conversation | None = None,
) -> Sequence[Sequence[Turn]]:
    """Bring the image tokens of each turn into the form the model is trained on; returns new turns.

    All image tokens of a turn become one in front of its text, as in the reference. With `keep_places`
    (records with several images) every one stays where it stands. Nothing is changed when
    `data_args.is_multimodal` is false.
    """
    if not data_args.is_multimodal:
        return sources
    token = DEFAULT_IMAGE_TOKEN
    if data_args.mm_use_im_start_end:
        token = f"{DEFAULT_IM_START_TOKEN}{token}{DEFAULT_IM_END_TOKEN}"
    if "mmtag" in _current(conv).version:
        token = f"<Image>{token}</Image>"

    def convert(turn: Turn) -> Turn:
        text = turn["value"]
        if DEFAULT_IMAGE_TOKEN not in text:
            return turn
        if not keep_places:
            text = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
        return {**turn, "value": text.replace(DEFAULT_IMAGE_TOKEN, token)}

    return [[convert(turn) for turn in source] for source in sources]


def _speaking_turns(source: Sequence[Turn], conv: Conversation) -> list[tuple[str, str]]:
    """Check the order of the turns; returns (role name in the template, text).

    A first turn that is not the human's is dropped, as in the reference. Raises DataError for turns that the
    template cannot hold.
    """
    problem = template_of(conv).check_dialog(source)
    if problem:
        raise DataError(problem)
    roles = {"human": conv.roles[0], "gpt": conv.roles[1]}
    start = 0 if source[0]["from"] == "human" else 1
    return [(roles[turn["from"]], turn["value"]) for turn in source[start:]]


def _dialog(source: Sequence[Turn], conv: Conversation) -> Conversation:
    """Put one conversation into a template, without its own examples. Raises UserError."""
    dialog = conv.copy()
    dialog.messages, dialog.offset = [], 0
    for role, text in _speaking_turns(source, conv):
        dialog.append_message(role, text)
    return dialog


def render(source: Sequence[Turn], conv: Conversation) -> tuple[str, list[tuple[int, int]]]:
    """Render one conversation; returns the prompt and the character range of each answer with its end mark.

    Raises UserError for turns that the template cannot hold.
    """
    prompt, answers = "", []
    for piece, supervised in _dialog(source, conv).spans():
        if supervised:
            answers.append((len(prompt), len(prompt) + len(piece)))
        prompt += piece
    return prompt, answers


# ---- the template families ----


_RULES: dict[str, MaskRule] = {"v1": V1_RULE, "llama_2": LLAMA_2_RULE, "mpt": MPT_RULE}
_STYLES = {
    "v1": SeparatorStyle.TWO,
    "llama_2": SeparatorStyle.LLAMA_2,
    "mpt": SeparatorStyle.MPT,
}


def _preprocess_rounds(
    rule: str,
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool,
    conv: Conversation | None,
    label_masks: str | None,
) -> Batch:
    """Render, tokenize and label conversations by one rule. Raises DataError for another's template."""
    conv = _current(conv)
    style = style_of(conv.sep_style)
    if style.labels != rule:
        raise DataError(
            f"a template of style {_STYLES[rule].name} is needed, the current one has {style.name}; "
            "choose another --version"
        )
    if label_masks == "spans" or (label_masks is None and not adds_bos(tokenizer)):
        return _preprocess_spans(sources, tokenizer, has_image, conv)
    rendered = [render(source, conv) for source in sources]
    input_ids = encode([prompt for prompt, _ in rendered], tokenizer, has_image)  # (n, length)
    count = counter(tokenizer, has_image)
    labels = [
        mask_by_counting(ids, prompt, conv, tokenizer, _RULES[rule], count)
        for ids, (prompt, _) in zip(input_ids, rendered, strict=True)
    ]
    for (prompt, spans), row in zip(rendered, labels, strict=True):
        # who has chosen the reference's way knows; train() counts what it loses
        if label_masks is None and spans and bool((row == IGNORE_INDEX).all()):
            logger.warning(
                "a conversation is not trained on, because its text confuses the counts of the reference "
                '(label_masks="spans" does not count): %.80r',
                prompt[spans[0][0] :],
            )
    return {"input_ids": input_ids, "labels": torch.stack(labels)}


def _preprocess_spans(
    sources: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase, has_image: bool, conv: Conversation
) -> Batch:
    """Tokenize and label conversations by the spans of their own rendering, whatever the template."""
    rendered = [render(source, conv) for source in sources]
    return _stack([label_spans(prompt, spans, tokenizer, has_image) for prompt, spans in rendered], tokenizer)


def _preprocess_pieces(
    sources: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase, has_image: bool, conv: Conversation
) -> Batch:
    """Tokenize and label conversations piece by piece, with the ids that asking has for the same dialog."""
    style, rows = style_of(conv.sep_style), []
    for source in sources:
        pieces = _dialog(source, conv).pieces()
        encoded = encode_pieces(pieces, tokenizer, has_image=has_image, start_token=style.start_token)
        ids = torch.tensor(encoded.ids, dtype=torch.long)  # (length,)
        learned = torch.tensor(encoded.supervised, dtype=torch.bool)
        rows.append((ids, ids.masked_fill(~learned, IGNORE_INDEX)))
    return _stack(rows, tokenizer)


def _stack(rows: Sequence[tuple[torch.Tensor, torch.Tensor]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Stack ids and labels of conversations, padded on the right: (n, length) each."""
    pad = tokenizer.pad_token_id or 0
    input_ids = pad_sequence([ids for ids, _ in rows], batch_first=True, padding_value=pad)
    labels = pad_sequence([labels for _, labels in rows], batch_first=True, padding_value=IGNORE_INDEX)
    return {"input_ids": input_ids, "labels": labels}


def reference_loses_answers(conv: Conversation, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the reference's counts fail on plain short dialogs of this template and tokenizer.

    So they do for every tokenizer without a start token, and in ChatML, where few dialogs survive them.
    """
    rule = _RULES.get(template_of(conv).labels)
    if rule is None:
        return False  # the plain and the oldest template mask by position
    for rounds in (1, 2, 3):
        turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A red cat."}] * rounds
        prompt, _ = render(turns, conv)
        ids = torch.tensor(tokenizer(prompt).input_ids)
        labels = mask_by_counting(ids, prompt, conv, tokenizer, rule, counter(tokenizer, False))
        if bool((labels == IGNORE_INDEX).all()):
            return True
    return False


def choose_label_masks(wanted: str | None, conv: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `wanted`, or without it the way that labels answers with this template and tokenizer."""
    if template_of(conv).labels in ("spans", "pieces"):
        if wanted == "reference":
            raise UserError(
                "--label_masks is reference, but the reference has no counts for this template; use spans"
            )
        return "spans"
    if wanted is not None:
        return wanted
    if not reference_loses_answers(conv, tokenizer):
        return "reference"
    logger.warning(
        "--label_masks spans is taken: the reference's counts mask answers of ordinary conversations "
        "with this template and tokenizer"
    )
    return "spans"


def _current(conv: Conversation | None) -> Conversation:
    """Return `conv`, or the template that is the default now (other projects set it)."""
    return conversation_lib.default_conversation if conv is None else conv


def preprocess_v1(
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool = False,
    conv: Conversation | None = None,
    label_masks: str | None = None,
) -> Batch:
    """Tokenize and label conversations in a "USER: ... ASSISTANT: ...</s>" template."""
    return _preprocess_rounds("v1", sources, tokenizer, has_image, conv, label_masks)


def preprocess_llama_2(
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool = False,
    conv: Conversation | None = None,
    label_masks: str | None = None,
) -> Batch:
    """Tokenize and label conversations in an "[INST] ... [/INST] ...</s>" template."""
    return _preprocess_rounds("llama_2", sources, tokenizer, has_image, conv, label_masks)


def preprocess_mpt(
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool = False,
    conv: Conversation | None = None,
    label_masks: str | None = None,
) -> Batch:
    """Tokenize and label conversations in a ChatML template."""
    return _preprocess_rounds("mpt", sources, tokenizer, has_image, conv, label_masks)


def preprocess_plain(
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    conv: Conversation | None = None,
    label_masks: str | None = None,
) -> Batch:
    """Tokenize and label captions: one image, then the caption; the question's text is discarded.

    Returns lists of tensors (length,). Raises DataError unless there are two turns with an image in the
    first.
    """
    conv = _current(conv)
    input_ids, labels = [], []
    for source in sources:
        problem = check_caption(source)
        if problem:
            raise DataError(problem)
        text = DEFAULT_IMAGE_TOKEN + source[1]["value"] + conv.sep
        ids = image_ids(text, tokenizer)
        masked = ids.clone()
        masked[: len(tokenizer_image_token(DEFAULT_IMAGE_TOKEN, tokenizer))] = IGNORE_INDEX
        if label_masks == "spans":
            masked[masked == IMAGE_TOKEN_INDEX] = IGNORE_INDEX  # of an image token inside the caption
        input_ids.append(ids)
        labels.append(masked)
    return {"input_ids": input_ids, "labels": labels}


def preprocess(
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool = False,
    conv: Conversation | None = None,
    label_masks: str | None = None,
) -> Batch:
    """Tokenize and label conversations in a template (default: conversation.default_conversation, read now).

    label_masks: "reference" counts tokens as the reference does, and masks a conversation whole that confuses
    it; "spans" labels exactly the answers and their end marks, whatever the text contains; None is
    "reference", but "spans" for tokenizers without a start token. Returns input_ids and labels; a label is
    its input id or IGNORE_INDEX. The rule is the template's own. Raises UserError for a template with an
    unknown sep_style or one that its version contradicts, DataError for turns the template cannot hold.
    """
    conv = _current(conv)
    rule = template_of(conv).labels
    if rule == "plain":
        return preprocess_plain(sources, tokenizer, conv, label_masks)
    if rule == "v0":
        return preprocess_v0(sources, tokenizer, has_image, conv, label_masks)
    if rule == "spans":
        return _preprocess_spans(sources, tokenizer, has_image, conv)
    if rule == "pieces":
        return _preprocess_pieces(sources, tokenizer, has_image, conv)
    return _preprocess_rounds(rule, sources, tokenizer, has_image, conv, label_masks)
