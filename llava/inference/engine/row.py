"""One answer that waits or runs: its prompt as keys, the choice of its tokens, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from transformers import Cache

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.decoder import Key, digest_of
from llava.inference.dialog import Answer, OpenPrompt
from llava.inference.engine.requests import Piece, Token
from llava.inference.model import LoadedModel
from llava.inference.model_inputs import image_length
from llava.inference.sampling import NextToken, SamplingParams
from llava.inference.streaming import TextStream
from llava.model.multimodal.media import Item


class Row:
    """An answer to one prompt.

    streaming: text is told piece by piece, in `pieces`, with log-probabilities if top_logprobs is a number;
    otherwise only the whole answer is. n_keep: keys at the prompt's beginning that are kept for other prompts
    as soon as they are computed. copies: further answers to the same prompt, which share its prefill.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: OpenPrompt,
        params: SamplingParams,
        *,
        streaming: bool = False,
        n_keep: int = 0,
        top_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        digests = [digest_of(one) for one in prompt.images]
        self.images: dict[bytes, Item] = dict(zip(digests, prompt.images, strict=True))
        waiting = iter(digests)
        self.keys: list[Key] = [next(waiting) if one == IMAGE_TOKEN_INDEX else one for one in prompt.ids]
        sizes = {name: image_length(loaded.model, one) for name, one in self.images.items()}
        self.ends = list(accumulate(1 if isinstance(one, int) else sizes[one] for one in self.keys))
        self.n_prompt = prompt.n_positions
        self.n_keep = n_keep
        self.n_cached = 0  # positions of the prompt that were not computed again
        self.stream = TextStream(loaded.tokenizer, prompt.stop, before=prompt.before)
        self.end_ids = loaded.end_ids(prompt.stop)
        self.choose = NextToken(params, loaded.model.generation_config, loaded.device, logit_bias=logit_bias)
        room = loaded.context - prompt.n_positions
        self.limit = min(params.max_new_tokens, room)
        self.limit_reason = "length" if params.max_new_tokens <= room else "context"
        self.streaming, self.top_logprobs = streaming, top_logprobs
        self.new_ids: list[int] = []
        self.pieces: list[Piece] = []
        self.reason: str | None = None  # why it has ended
        self.error: Exception | None = None
        self.cancelled = False
        self.copies: list[Row] = []
        self.cache: Cache | None = None  # where it runs ...
        self.place = 0  # ... in which row of it
        self._told: list[Token] = []  # that came since the last piece

    @property
    def n_final(self) -> int:
        """Positions that it takes at most."""
        return self.n_prompt + self.limit

    @property
    def length(self) -> int:
        """Positions that it has in the cache: all but the last token, which is not fed yet."""
        return self.n_prompt + max(0, len(self.new_ids) - 1)

    def cached_keys(self) -> tuple[list[Key], list[int]]:
        """Return the keys that the cache holds, and how many positions are filled after each."""
        fed = self.new_ids[:-1]
        return [*self.keys, *fed], [*self.ends, *(self.n_prompt + 1 + index for index in range(len(fed)))]

    def take(self, token: int, logits: torch.Tensor) -> None:
        """Take the next id, chosen from logits (vocab,); sets `reason` when the answer ends with it."""
        self.new_ids.append(token)
        if token in self.end_ids:
            self.finish("stop")
            return
        if not self.streaming:
            stopped = self.stream.hold(token)
        else:
            self._told.append(self._token(token, logits))
            self._tell(self.stream.put(token))
            stopped = self.stream.stopped
        if stopped:
            self.finish("stop")
        elif len(self.new_ids) >= self.limit:
            self.finish(self.limit_reason)

    def finish(self, reason: str) -> None:
        """End the answer."""
        text = self.stream.end()
        if self.streaming and (text or self._told):
            self.pieces.append(Piece(text, tuple(self._told)))
            self._told = []
        self.reason = "stop" if self.stream.stopped else reason

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        self.error, self.reason = error, "error"

    def answer(self) -> Answer:
        """Return the whole answer."""
        return Answer(self.stream.text, self.reason or "", tuple(self.stream.ids))

    def _tell(self, text: str) -> None:
        if text:
            self.pieces.append(Piece(text, tuple(self._told)))
            self._told = []

    def _token(self, token: int, logits: torch.Tensor) -> Token:
        if self.top_logprobs is None:
            return Token(token)
        logprobs = logits.float().log_softmax(dim=-1)  # (vocab,)
        values, ids = logprobs.topk(min(self.top_logprobs, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Token(token, float(logprobs[token]), top)


def similar(rows: Sequence[int], length: int) -> bool:
    """Tell whether a prompt of `length` positions may be computed with these without much padding."""
    longest, shortest = max(*rows, length), min(*rows, length)
    return longest - shortest <= max(32, longest // 5)
