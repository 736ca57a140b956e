"""Which tokens of a rendered dialog are trained on: by the reference's counts, or by construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llava.constants import IGNORE_INDEX
from llava.conversation import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# ---- labels, the reference's way: count tokens round by round ----


@dataclass(frozen=True)
class MaskRule:
    """How the reference finds the answers of one template family in a rendered prompt.

    rounds: cuts a prompt into rounds of question and answer. mark: what stands between the two in a round.
    margin: tokens of the question's count that belong to its start token and to the piece in front of the
    answer. later: correction of both counts from the second round on (a round on its own starts with tokens
    it does not have inside the prompt).
    """

    rounds: Callable[[str, Conversation], list[str]]
    mark: Callable[[Conversation], str]
    margin: int
    later: Callable[[Any], int]
    start: int = 1


def _rounds_by_end_mark(prompt: str, conv: Conversation) -> list[str]:
    return prompt.split(conv.sep2 or "")


def _rounds_of_messages(prompt: str, conv: Conversation) -> list[str]:
    """Cut after each answer: system, question and answer first, then question and answer."""
    pieces = prompt.split(conv.sep)
    starts = [0, *range(3, len(pieces), 2)]
    ends = [3, *(start + 2 for start in starts[1:])]
    return [conv.sep.join(pieces[start:end]) for start, end in zip(starts, ends, strict=True)]


V1_RULE = MaskRule(
    rounds=_rounds_by_end_mark,
    mark=lambda conv: f"{conv.sep}{conv.roles[1]}: ",
    margin=2,
    later=lambda tokenizer: 0 if getattr(tokenizer, "legacy", True) else -1,
)
LLAMA_2_RULE = MaskRule(
    rounds=_rounds_by_end_mark, mark=lambda conv: "[/INST] ", margin=2, later=lambda tokenizer: 0
)
MPT_RULE = MaskRule(
    rounds=_rounds_of_messages,
    mark=lambda conv: f"{conv.sep}{conv.roles[1]}",
    margin=1,
    later=lambda tokenizer: 1 if getattr(tokenizer, "legacy", False) else 0,
    start=0,
)


def mask_by_counting(
    ids: torch.Tensor,
    prompt: str,
    conv: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    rule: MaskRule,
    count: Callable[[str], int],
) -> torch.Tensor:
    """Label one prompt as the reference does: (length,) -> (length,).

    The questions are located by counting the tokens of each round on its own. When the counts do not add up
    to the prompt (text with separators or special tokens, an empty or missing answer), nothing of it is
    trained on.
    """
    labels = ids.clone()
    pad = tokenizer.pad_token_id
    total = len(ids) if pad is None else int(ids.ne(pad).sum())
    position = rule.start
    labels[:position] = IGNORE_INDEX
    for number, text in enumerate(rule.rounds(prompt, conv)):
        question, found, answer = text.partition(rule.mark(conv))
        if not found or rule.mark(conv) in answer:
            break
        shift = rule.later(tokenizer) if number else 0
        question_length = count(question + rule.mark(conv)) - rule.margin + shift
        labels[position : position + question_length] = IGNORE_INDEX
        position += count(text) + shift
    labels[position:] = IGNORE_INDEX
    if position < tokenizer.model_max_length and position != total:
        labels[:] = IGNORE_INDEX
    return labels


# ---- labels, by construction: whatever the text contains ----


def mask_by_spans(
    ids: torch.Tensor, starts: Sequence[int], prompt: str, answers: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Label exactly the tokens that begin inside the answers: (length,) -> (length,).

    starts: where in the prompt each token begins, NOWHERE for tokens without text. answers: the character
    range of each answer with its end mark. The template's space in front of an answer belongs to it, since
    tokenizers join it to the first word; the reference has it so, too.
    """
    places = torch.tensor(starts[: len(ids)])  # (length,)
    supervised = torch.zeros(len(ids), dtype=torch.bool)
    for begin, end in answers:
        first = begin - 1 if begin and prompt[begin - 1] == " " else begin
        supervised[: len(places)] |= (places >= first) & (places < end)
    return ids.masked_fill(~supervised, IGNORE_INDEX)
