"""Many dialogs at once: read in order, answered the longest first, images opened when their turn comes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import torch

from llava.inference.answer import stream_answer
from llava.inference.decoder import Decoder, digest_of
from llava.inference.dialog import Answer, Dialog, OpenPrompt, Prompt
from llava.inference.model import LoadedModel
from llava.inference.model_inputs import context_of, device_of, encode_images, end_ids, splice_prompts
from llava.inference.sampling import NextToken, SamplingParams, choose_rows
from llava.inference.streaming import TextStream
from llava.model.multimodal.splice import pad_rows
from llava.utils import UserError

__all__ = ["DEFAULT_BATCH_SIZE", "Answer", "Dialog", "generate_batch"]

DEFAULT_BATCH_SIZE = 8
# Of an iterable without a length so many dialogs for each row of the batch are read at a time, to run those
# of similar length together.
READ_AHEAD = 32

Question = TypeVar("Question")
OnAnswer = Callable[[int, Answer], object]


@dataclass(frozen=True)
class Reader(Generic[Question]):
    """Turns questions into prompts; UserError names the index of the one that cannot be asked."""

    loaded: LoadedModel
    params: SamplingParams
    as_dialog: Callable[[Question], Dialog]
    word: str = "dialog"

    def read(self, index: int, question: Question) -> Prompt:
        """Return a question as a prompt whose images are not opened."""
        try:
            return self.loaded.read(self.as_dialog(question), self.params.stop)
        except UserError as error:
            raise self._named(index, error) from error

    def open(self, index: int, prompt: Prompt) -> OpenPrompt:
        """Return a prompt with its images opened."""
        try:
            return self.loaded.open(prompt)
        except UserError as error:
            raise self._named(index, error) from error

    def _named(self, index: int, error: UserError) -> UserError:
        return UserError(f"{self.word} {index}: {error}")


@overload
def generate_batch(
    loaded: LoadedModel,
    dialogs: Iterable[Dialog],
    params: SamplingParams | None = None,
    /,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
) -> list[Answer]: ...


@overload
def generate_batch(
    tokenizer: Any,
    model: Any,
    image_processor: Any,
    dialogs: Iterable[Dialog],
    params: SamplingParams | None = None,
    /,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
) -> list[Answer]: ...


def generate_batch(
    *given: Any,
    params: SamplingParams | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
) -> list[Answer]:
    """Return the answer to each dialog, in their order.

    `generate_batch(loaded, dialogs, params)`, or with tokenizer, model and image_processor in place of the
    LoadedModel. Dialogs of similar length run together, at most `batch_size` at a time, the longest first,
    and a new one joins as soon as one is answered; text-only ones, images of any size and several images mix.
    Images that are given as paths or URLs are opened when their turn comes. A list of dialogs is read at
    once, so that UserError names the first that cannot be asked before anything is generated (for an image
    that turns out to be damaged: in its turn); another iterable is read piece by piece.

    The answers are those that ChatSession gives one by one (the same seed for each), as far as sums in
    another order round alike: token for token for float32 and greedy choice, while in 16 bits near ties may
    fall the other way. With beams, dialogs run one by one. on_answer is called with (index, answer) as
    answers come.
    """
    loaded, dialogs, settings = arguments_of(given, params)
    reader: Reader[Dialog] = Reader(loaded, settings, same)
    found = answer_all(reader, dialogs, batch_size=batch_size, on_answer=on_answer)
    return [found[index] for index in range(len(found))]


def arguments_of(
    given: Sequence[Any], params: SamplingParams | None
) -> tuple[LoadedModel, Iterable[Dialog], SamplingParams]:
    """Return the model, dialogs and settings of either call form of generate_batch."""
    n_model = 1 if isinstance(given[0], tuple) else 3
    if not n_model < len(given) <= n_model + 2 - (params is not None):
        raise TypeError("expected a LoadedModel (or tokenizer, model, image_processor), dialogs, and params")
    dialogs, *rest = given[n_model:]
    return (
        LoadedModel.of(*given[:n_model]),
        dialogs,
        params or (rest[0] if rest else None) or SamplingParams(),
    )


def answer_all(
    reader: Reader[Question],
    questions: Iterable[Question],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
    start: int = 0,
    step: int = 1,
) -> dict[int, Answer]:
    """Return the answers to every `step`-th question from `start` on, by the question's index."""
    check_batch_size(batch_size)
    window = None if isinstance(questions, Sequence) else READ_AHEAD * batch_size
    own = islice(enumerate(questions), start, None, step)
    answers: dict[int, Answer] = {}
    while prompts := {index: reader.read(index, one) for index, one in islice(own, window)}:
        for index, answer in answer_prompts(reader, prompts, batch_size):
            answers[index] = answer
            if on_answer is not None:
                on_answer(index, answer)
    return answers


def check_batch_size(batch_size: object) -> None:
    """Raise UserError for what is no number of rows."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")


def read_all(
    reader: Reader[Question], questions: Iterable[Question], *, start: int = 0, step: int = 1
) -> dict[int, Prompt]:
    """Read every `step`-th question from `start` on; UserError names the first that cannot be asked."""
    return {index: reader.read(index, one) for index, one in islice(enumerate(questions), start, None, step)}


def same(dialog: Dialog) -> Dialog:
    """Return a dialog as it is; what a Reader of dialogs does with its questions."""
    return dialog


def answer_prompts(
    reader: Reader[Any], prompts: Mapping[int, Prompt], batch_size: int
) -> Iterator[tuple[int, Answer]]:
    """Yield (index, answer) of prompts as they end, the longest first, so that too little memory shows."""
    by_length = sorted(prompts.items(), key=lambda one: -one[1].n_positions)
    if reader.params.num_beams > 1:
        decoder = reader.loaded.decoder()
        for index, prompt in by_length:
            yield index, _answer_alone(decoder, reader, reader.open(index, prompt))
        return
    for start in range(0, len(by_length), batch_size):
        bucket = by_length[start : start + batch_size]
        yield from _answer_bucket(reader, [(index, reader.open(index, one)) for index, one in bucket])


def _answer_alone(decoder: Decoder, reader: Reader[Any], prompt: OpenPrompt) -> Answer:
    stream = TextStream(reader.loaded.tokenizer, prompt.stop)
    pieces = stream_answer(decoder, reader.loaded.tokenizer, prompt.ids, prompt.images, reader.params, stream)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return Answer(stream.text, end.value, tuple(stream.ids))


class _Row:
    """One running answer of a bucket."""

    def __init__(
        self, index: int, prompt: OpenPrompt, tokenizer: Any, model: Any, params: SamplingParams
    ) -> None:
        self.index = index
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
    reader: Reader[Any], prompts: Sequence[tuple[int, OpenPrompt]]
) -> Iterator[tuple[int, Answer]]:
    """Yield (index, answer) of the prompts of a bucket, as they end."""
    tokenizer, model, image_processor, _ = reader.loaded
    rows = [_Row(index, one, tokenizer, model, reader.params) for index, one in prompts]
    with torch.inference_mode():
        batch = _LeftPadded(model, image_processor, [one for _, one in prompts])
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

    def __init__(self, model: Any, image_processor: Any, prompts: Sequence[OpenPrompt]) -> None:
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
