"""Many dialogs at once: buckets of similar length, left padding, rows that leave when they are answered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from llava.images import as_picture
from llava.inference.answer import end_ids, stream_answer
from llava.inference.decoder import Decoder, digest_of
from llava.inference.dialog import Answer, Dialog
from llava.inference.model_inputs import (
    check_fits,
    context_of,
    device_of,
    encode_images,
    image_length,
    splice_prompts,
)
from llava.inference.prompt import encode_prompt, stop_strings
from llava.inference.sampling import NextToken, SamplingParams, choose_rows
from llava.inference.streaming import TextStream
from llava.model.multimodal.splice import pad_rows
from llava.utils import UserError

__all__ = ["DEFAULT_BATCH_SIZE", "Answer", "Dialog", "generate_batch", "prompt_lengths"]

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True)
class _Prompt:
    """A dialog ready to run: its place among the dialogs, ids, images, stop strings, positions."""

    index: int
    ids: list[int]
    images: Sequence[Image.Image]
    stop: tuple[str, ...]
    n_positions: int


def generate_batch(
    tokenizer: Any,
    model: Any,
    image_processor: Any,
    dialogs: Sequence[Dialog],
    params: SamplingParams | None = None,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Return the answer to each dialog, in their order.

    Dialogs of similar length run together, at most `batch_size` at a time, the longest first; text-only ones,
    images of any size and several images mix. The answers are those that ChatSession gives one by one (the
    same seed for each), as far as sums in another order round alike: token for token for float32 and greedy
    choice, while in 16 bits near ties may fall the other way. With beams, dialogs run one by one.
    on_answer is called with (index, answer) as answers come. Raises UserError, before anything is generated,
    for a dialog that cannot be asked; its index is named.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
    params = params or SamplingParams()
    prompts = _read_dialogs(tokenizer, model, image_processor, dialogs, params)
    answers: dict[int, Answer] = {}
    if params.num_beams > 1:
        run, buckets = _one_by_one, iter([prompts])
    else:
        run, buckets = _answer_bucket, _buckets(prompts, batch_size)
    for bucket in buckets:
        for index, answer in run(tokenizer, model, image_processor, bucket, params):
            answers[index] = answer
            if on_answer is not None:
                on_answer(index, answer)
    return [answers[index] for index in range(len(prompts))]


def prompt_lengths(
    tokenizer: Any,
    model: Any,
    image_processor: Any,
    dialogs: Sequence[Dialog],
    params: SamplingParams | None = None,
) -> list[int]:
    """Return the positions of each dialog's prompt; UserError names the first that cannot be asked."""
    prompts = _read_dialogs(tokenizer, model, image_processor, dialogs, params or SamplingParams())
    return [one.n_positions for one in prompts]


def _read_dialogs(
    tokenizer: Any, model: Any, image_processor: Any, dialogs: Sequence[Dialog], params: SamplingParams
) -> list[_Prompt]:
    """Turn dialogs into prompts; UserError names the first that cannot be asked."""
    prompts = []
    for index, dialog in enumerate(dialogs):
        try:
            prompts.append(_read_dialog(tokenizer, model, image_processor, index, dialog, params))
        except UserError as error:
            raise UserError(f"dialog {index}: {error}") from error
    return prompts


def _read_dialog(
    tokenizer: Any, model: Any, image_processor: Any, index: int, dialog: Dialog, params: SamplingParams
) -> _Prompt:
    conversation = dialog.conversation
    if not conversation.messages or conversation.messages[-1][1] is not None:
        raise UserError("its last message is not None; append (roles[1], None), the answer that is wanted")
    if dialog.images and image_processor is None:
        raise UserError("it has images, but this model has no vision tower; ask it without an image")
    ids = encode_prompt(tokenizer, conversation, len(dialog.images))
    images = [as_picture(one) for one in dialog.images]
    lengths = [image_length(model, one.size) for one in images]
    n_positions = len(ids) - len(lengths) + sum(lengths)
    check_fits(model, n_positions, has_images=bool(lengths))
    return _Prompt(index, ids, images, stop_strings(conversation) + params.stop, n_positions)


def _buckets(prompts: Sequence[_Prompt], size: int) -> Iterator[list[_Prompt]]:
    """Yield prompts in groups of similar length, the longest first, so that too little memory shows."""
    by_length = sorted(prompts, key=lambda one: -one.n_positions)
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]


def _one_by_one(
    tokenizer: Any, model: Any, image_processor: Any, prompts: Sequence[_Prompt], params: SamplingParams
) -> Iterator[tuple[int, Answer]]:
    decoder = Decoder(model, image_processor)
    for prompt in prompts:
        stream = TextStream(tokenizer, prompt.stop)
        pieces = stream_answer(decoder, tokenizer, prompt.ids, prompt.images, params, stream)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                yield prompt.index, Answer(stream.text, end.value, tuple(stream.ids))
                break


class _Row:
    """One running answer of a bucket."""

    def __init__(self, prompt: _Prompt, tokenizer: Any, model: Any, params: SamplingParams) -> None:
        self.index = prompt.index
        self.stream = TextStream(tokenizer, prompt.stop)
        self.choose = NextToken(params, model.generation_config, device_of(model))
        self.ends = end_ids(model, tokenizer, prompt.stop)
        room = context_of(model) - prompt.n_positions
        self.limit = min(params.max_new_tokens, room)
        self.limit_reason = "length" if params.max_new_tokens <= room else "context"
        self.new_ids: list[int] = []

    def take(self, token: int) -> str | None:
        """Take the next id; return why the answer ends with it, or None."""
        self.new_ids.append(token)
        if token in self.ends or self.stream.hold(token):
            return "stop"
        return self.limit_reason if len(self.new_ids) >= self.limit else None

    def answer(self, reason: str) -> Answer:
        self.stream.end()
        return Answer(self.stream.text, "stop" if self.stream.stopped else reason, tuple(self.stream.ids))


def _answer_bucket(
    tokenizer: Any, model: Any, image_processor: Any, prompts: Sequence[_Prompt], params: SamplingParams
) -> Iterator[tuple[int, Answer]]:
    """Yield (index, answer) of the prompts of a bucket, as they end."""
    rows = [_Row(one, tokenizer, model, params) for one in prompts]
    with torch.inference_mode():
        batch = _LeftPadded(model, image_processor, prompts)
        logits = batch.prefill()
    while True:
        tokens = choose_rows([row.choose for row in rows], logits, [row.new_ids for row in rows])
        reasons = [row.take(token) for row, token in zip(rows, tokens, strict=True)]
        yield from (
            (row.index, row.answer(reason)) for row, reason in zip(rows, reasons, strict=True) if reason
        )
        kept = [place for place, reason in enumerate(reasons) if reason is None]
        if not kept:
            return
        with torch.inference_mode():
            if len(kept) < len(rows):
                rows = [rows[place] for place in kept]
                batch.keep(kept)
            logits = batch.step([tokens[place] for place in kept])


class _LeftPadded:
    """The rows of a bucket in the model: embeddings, mask, positions and KV cache."""

    def __init__(self, model: Any, image_processor: Any, prompts: Sequence[_Prompt]) -> None:
        self.model = model
        images = [image for one in prompts for image in one.images]
        digests = [digest_of(image) for image in images]
        pictures = dict(zip(digests, images, strict=True))  # each picture once
        encoded = encode_images(model, image_processor, list(pictures.values()))
        features = dict(zip(pictures, encoded, strict=True))
        in_order = [features[digest] for digest in digests]
        padded = pad_rows(splice_prompts(model, [one.ids for one in prompts], in_order), side="left")
        self.embeds = padded.embeds  # (B, L, C)
        self.mask = padded.attention_mask.long()  # (B, cached + new)
        self.positions = padded.position_ids  # (B, L)
        self.cache: Any = None
        # MPT has none: ALiBi works on distances
        self.takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters

    def prefill(self) -> torch.Tensor:
        """Return the logits (B, vocab) after the prompts."""
        logits = self._run(inputs_embeds=self.embeds)
        del self.embeds
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add a token to each row; return the logits (B, vocab) after it."""
        ids = torch.tensor(tokens, device=self.mask.device)[:, None]  # (B, 1)
        self.mask = torch.cat((self.mask, torch.ones_like(ids)), dim=1)
        self.positions = self.positions[:, -1:] + 1
        return self._run(input_ids=ids)

    def keep(self, places: Sequence[int]) -> None:
        """Drop all rows but these."""
        chosen = torch.tensor(places, device=self.mask.device)
        self.mask, self.positions = self.mask[chosen], self.positions[chosen]
        self.cache.batch_select_indices(chosen)

    def _run(self, **inputs: torch.Tensor) -> torch.Tensor:
        if self.takes_positions:
            inputs["position_ids"] = self.positions
        out = self.model(
            **inputs,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]
