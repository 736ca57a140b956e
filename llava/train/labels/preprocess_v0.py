"""The first template version, "### Human: ...": labels by adding up the lengths of segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llava import conversation as conversation_lib
from llava.constants import IGNORE_INDEX
from llava.conversation import Conversation
from llava.mm_utils import tokenizer_image_token
from llava.train.labels.encoding import Batch, Turn, image_ids, label_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

V0_SIGNAL = "### "


def _tokenize_fn(strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Batch:
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


def _v0_answers(source: Sequence[Turn], segments: Sequence[str]) -> list[tuple[int, int]]:
    """Find the answers among the segments of a dialog: character ranges, with "###" as the end mark."""
    answers, place = [], len(segments[0])
    for turn, segment in zip(source, segments[1:], strict=True):
        end = place + len(segment)
        if turn["from"] == "gpt" and turn["value"]:
            answers.append((end - 1 - len(turn["value"]), end + len(V0_SIGNAL.rstrip())))
        place = end
    return answers


def preprocess_v0(
    sources: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool,
    conv: Conversation,
    label_masks: str | None,
) -> Batch:
    """Tokenize and label conversations in the first template; returns lists of tensors (length,)."""
    header = f"{conv.system}\n\n"
    input_ids, labels = [], []
    for source in sources:
        segments = [header, *_signal_turns(source, conv)]
        text = "".join(segments) + V0_SIGNAL
        if label_masks == "spans":
            ids, masked = label_spans(text, _v0_answers(source, segments), tokenizer, has_image)
            input_ids.append(ids)
            labels.append(masked)
            continue
        if has_image:
            ids = image_ids(text, tokenizer)
            lengths = [len(tokenizer_image_token(segment, tokenizer)) for segment in segments]
        else:
            ids = _tokenize_fn([text], tokenizer)["input_ids"][0]
            lengths = _tokenize_fn(segments, tokenizer)["input_ids_lens"]
        masked = ids.clone()
        _mask_targets(masked, lengths, [turn["from"] for turn in source])
        input_ids.append(ids)
        labels.append(masked)
    return {"input_ids": input_ids, "labels": labels}
