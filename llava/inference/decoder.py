"""Runs a model on prompts that grow, and computes only what the last prompt did not have."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.freshness import state_of
from llava.inference.model_inputs import (
    check_fits,
    context_of,
    device_of,
    encode_images,
    splice_prompts,
)
from llava.model.multimodal.media import Item
from llava.protocols import ImageProcessor
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# What a prompt is made of: a token id, or the digest of an image.
Key = int | bytes


class Decoder:
    """A model with the KV cache and the image features of the last prompt; serves one answer at a time.

    `prefill` brings a prompt in, `step` one more token. A prompt that begins like the one before costs only
    the rest: images are told apart by their content, so asking again about an image runs no tower. Nothing
    is kept over a change of the model (weights, dtype, device, adapters, mode); see freshness.state_of.
    """

    def __init__(self, model: PreTrainedModel, image_processor: ImageProcessor | None = None) -> None:
        self.model = model
        self.image_processor = image_processor
        self.n_prompts = 0  # by which an answer sees that another one has begun
        self._lock = threading.RLock()
        self._state: Hashable = None  # of the model, when what is kept was computed
        self.forget()

    def forget(self) -> None:
        """Drop the cache and the image features."""
        self._features: dict[bytes, torch.Tensor] = {}  # digest of an image -> (length, C)
        self._empty()

    def _empty(self) -> None:
        self._cache: Cache | None = None  # None while nothing is kept
        self._keys: list[Key] = []  # what the cache holds
        self._ends: list[int] = []  # how many positions are filled after each of them

    def prefill(self, ids: Sequence[int], images: Sequence[Item] = ()) -> torch.Tensor:
        """Bring a prompt into the cache; return the logits (1, vocab) of the token after it.

        ids: the prompt's, IMAGE_TOKEN_INDEX once for each image. Raises UserError for a prompt that leaves no
        position for an answer.
        """
        with self._lock:
            self.n_prompts += 1
            keys = self.keys_of(ids, images)
            kept = self._keep(keys)
            return self._extend(keys[kept:])

    def step(self, token: int, *, prompt: int | None = None) -> torch.Tensor:
        """Add one token to the cache; return the logits (1, vocab) of the token after it.

        prompt: the value of `n_prompts` after this answer's prefill. Raises UserError if another answer has
        begun since.
        """
        with self._lock:
            if prompt is not None and prompt != self.n_prompts:
                raise UserError("another answer has begun on the same decoder; finish one answer first")
            return self._extend([token])

    @property
    def room(self) -> int:
        """How many positions are left for an answer."""
        return context_of(self.model) - self._filled

    @property
    def _filled(self) -> int:
        return self._ends[-1] if self._ends else 0

    def keys_of(self, ids: Sequence[int], images: Sequence[Item]) -> list[Key]:
        """Return a prompt with image digests in place of image tokens; encodes images that are new.

        Features of images that are not in this prompt are dropped. Raises UserError for a prompt that is too
        long, before any image is encoded if its text alone is.
        """
        self._notice_changes()
        check_fits(self.model, len(ids))
        digests = [digest_of(image) for image in images]
        known = {one: self._features[one] for one in digests if one in self._features}
        new = {one: image for one, image in zip(digests, images, strict=True) if one not in known}
        encoded = encode_images(self.model, self.image_processor, list(new.values()))
        self._features = known | dict(zip(new, encoded, strict=True))
        waiting = iter(digests)
        keys: list[Key] = [next(waiting) if one == IMAGE_TOKEN_INDEX else one for one in ids]
        check_fits(self.model, self.length_of(keys), has_images=bool(images))
        return keys

    def _notice_changes(self) -> None:
        """Forget what an earlier state of the model has computed."""
        state = state_of(self.model)
        if state != self._state:
            self.forget()
            self._state = state

    def length_of(self, keys: Sequence[Key]) -> int:
        """Count positions of a prompt: one a token, and as many as an image has features."""
        return sum(1 if isinstance(one, int) else len(self._features[one]) for one in keys)

    def _keep(self, keys: Sequence[Key]) -> int:
        """Cut the cache back to what it shares with a new prompt; return how many of its keys that are.

        At least one key is left over, for its logits.
        """
        kept = 0
        for old, new in zip(self._keys, keys[:-1], strict=False):
            if old != new:
                break
            kept += 1
        if kept and kept < len(self._keys):
            try:
                self._crop(self._ends[kept - 1])
            except (RuntimeError, ValueError):  # a sliding window that has moved on cannot be cut back
                kept = 0
        if kept == 0:
            self._empty()
        del self._keys[kept:], self._ends[kept:]
        return kept

    def _extend(self, keys: Sequence[Key]) -> torch.Tensor:
        """Run the model on what follows the cached keys and cache it; return the last logits (1, vocab)."""
        cache, cached, ends, start = self._cache, self._keys, self._ends, self._filled
        self._empty()  # an interrupt in the middle must not leave a half-filled cache behind
        with torch.inference_mode():
            logits, cache = self._run(self._inputs(keys), cache, start)
        cached.extend(keys)
        for one in keys:
            start += self.length_of([one])
            ends.append(start)
        self._cache, self._keys, self._ends = cache, cached, ends
        return logits

    def _inputs(self, keys: Sequence[Key]) -> dict[str, torch.Tensor]:
        """Return input_ids (1, n), or inputs_embeds (1, n, C) where there are images."""
        ids = [IMAGE_TOKEN_INDEX if isinstance(one, bytes) else one for one in keys]
        images = [self._features[one] for one in keys if isinstance(one, bytes)]
        if not images:
            return {"input_ids": torch.tensor([ids], dtype=torch.long, device=device_of(self.model))}
        (row,) = splice_prompts(self.model, [ids], images)
        return {"inputs_embeds": row.embeds[None]}

    def _run(self, inputs: dict[str, torch.Tensor], cache: Cache, start: int) -> tuple[torch.Tensor, Any]:
        """Run the model behind `start` cached positions; return the last logits (1, vocab) and the cache."""
        out = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values

    def _crop(self, n_positions: int) -> None:
        """Cut the cache to its first positions. Raises RuntimeError or ValueError where that cannot be."""
        assert self._cache is not None
        if any(hasattr(layer, "recurrent_states") for layer in self._cache.layers):
            raise ValueError("a state belongs to all positions before it")
        self._cache.crop(n_positions - self._filled)  # a negative number is cut from the end


def digest_of(image: Item) -> bytes:
    """Return what tells an image's content apart from another's."""
    head = f"{image.mode} {image.size} ".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()
