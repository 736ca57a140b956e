"""One answer to one prompt: tokens from a decoder become pieces of text until something ends them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.decoder import Decoder
from llava.inference.model_inputs import context_of, device_of, end_ids, pixels_for
from llava.inference.sampling import NextToken, SamplingParams
from llava.inference.streaming import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stream_answer(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    images: Sequence[Image.Image],
    params: SamplingParams,
    stream: TextStream,
) -> Generator[str, None, str]:
    """Yield the pieces of the answer to a prompt; return why it ended.

    ids: the prompt's, IMAGE_TOKEN_INDEX once for each image. stream: a new TextStream, with the stop strings;
    it holds the text afterwards. Returned is "stop" (end token or stop string), "length" (max_new_tokens) or
    "context" (no position is left). Raises UserError for a prompt that does not fit the context.
    """
    ends = end_ids(decoder.model, tokenizer, stream.stop)
    if params.num_beams > 1:
        new_ids: Iterator[int] = iter(beam_search(decoder, tokenizer, ids, images, params))
    else:
        new_ids = _tokens(decoder, ids, images, params)
    reason = "length"
    n_new = 0
    for token in new_ids:
        n_new += 1
        if token in ends:
            reason = "stop"
            break
        if piece := stream.put(token):
            yield piece
        if stream.stopped:
            break
    if piece := stream.end():
        yield piece
    if stream.stopped:
        return "stop"
    return "context" if reason == "length" and n_new < params.max_new_tokens else reason


def _tokens(
    decoder: Decoder, ids: Sequence[int], images: Sequence[Image.Image], params: SamplingParams
) -> Iterator[int]:
    """Yield new ids until max_new_tokens or the end of the context; the caller stops at an end id."""
    choose = NextToken(params, decoder.model.generation_config, device_of(decoder.model))
    logits = decoder.prefill(ids, images)
    mine = decoder.n_prompts
    new_ids: list[int] = []
    for step in range(min(params.max_new_tokens, decoder.room)):
        if step:
            logits = decoder.step(new_ids[-1], prompt=mine)
        new_ids.append(choose(logits, new_ids))
        yield new_ids[-1]


def beam_search(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    images: Sequence[Image.Image],
    params: SamplingParams,
) -> list[int]:
    """Return the new ids of `model.generate`, which knows beams; its answer comes in one piece."""
    model = decoder.model
    n_positions = decoder.length_of(decoder.keys_of(ids, images))
    prompt = torch.tensor([ids], dtype=torch.long, device=device_of(decoder.model))  # (1, n)
    kwargs = params.generate_kwargs()
    kwargs["attention_mask"] = torch.ones_like(prompt)
    kwargs["pad_token_id"] = tokenizer.pad_token_id
    kwargs["max_new_tokens"] = min(params.max_new_tokens, context_of(model) - n_positions)
    if IMAGE_TOKEN_INDEX in ids:
        kwargs["images"] = pixels_for(model, decoder.image_processor, images)
        kwargs["image_sizes"] = [one.size for one in images]
    with torch.inference_mode(), torch.random.fork_rng(enabled=params.seed is not None):
        if params.seed is not None:
            torch.manual_seed(params.seed)
        new_ids = model.generate(prompt, **kwargs)  # (1, n_new)
    return new_ids[0].tolist()
