"""Bringing prompts into a cache piece by piece: a group of rows of similar length, on top of what is kept."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import Cache

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.engine.kept import Found, Kept
from llava.inference.engine.kv import left_mask, new_cache, stack, width_of
from llava.inference.engine.row import Row
from llava.inference.model import LoadedModel
from llava.inference.model_inputs import encode_images, splice_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Fewest columns of a piece, whatever the number of rows.
LEAST_COLUMNS = 16


class ModelCall:
    """Runs the model on rows that are aligned at the right end of a cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        # MPT has none: ALiBi works on distances; the mixin in front of the LLM's class takes anything
        self.takes_positions = any(
            "position_ids" in inspect.signature(one.__dict__["forward"]).parameters
            for one in type(model.base_model).__mro__
            if "forward" in one.__dict__
        )

    def __call__(
        self, cache: Cache, lengths: Sequence[int], n_new: int, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """Add `n_new` columns to a cache; return the logits (B, vocab) of the last one.

        lengths: positions of each row, the new ones included. inputs: input_ids (B, n_new) or inputs_embeds.
        """
        device = next(iter(inputs.values())).device
        width = width_of(cache) + n_new
        if self.takes_positions:
            ends = torch.tensor(lengths, device=device)[:, None]  # (B, 1)
            columns = torch.arange(-n_new, 0, device=device)[None]  # (1, n_new)
            inputs["position_ids"] = (ends + columns).clamp(min=0)
        out = self.model(
            **inputs,
            attention_mask=left_mask([max(0, one) for one in lengths], width, device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]


class Prefill:
    """A group of rows on their way into a cache of their own; `advance` computes the next piece.

    Each row's last columns are computed again, as many as the row with the least kept needs; what stands in
    front of them is copied from what is kept. So all rows are right-aligned and have no gaps.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[Row],
        found: Sequence[Found],
        kept: Kept,
        *,
        call: ModelCall,
        chunk: int,
    ) -> None:
        self.loaded, self.rows, self.kept, self.call = loaded, list(rows), kept, call
        # columns to compute
        self.n_new = max(row.n_prompt - one.n_positions for row, one in zip(rows, found, strict=True))
        past = [max(0, row.n_prompt - self.n_new) for row in rows]
        for row, n_past in zip(rows, past, strict=True):
            row.n_cached = n_past
        self.cache = self._begin(found, past)
        self._chunk = max(LEAST_COLUMNS, chunk // len(rows))
        self._done = 0  # columns computed
        self._features: dict[bytes, torch.Tensor] = {}
        self._missing = self._read_features(past)
        self._embeds: torch.Tensor | None = None  # (B, n_new, C)
        self._past = past

    def _begin(self, found: Sequence[Found], past: Sequence[int]) -> Cache:
        """Return a cache with what is kept of each row."""
        if not any(past):
            return new_cache()
        parts = [one.columns(count) for one, count in zip(found, past, strict=True)]
        some = next(one for one in parts if one is not None)
        with torch.inference_mode():
            return stack([one or some._replace(start=0, end=0) for one in parts])

    def _read_features(self, past: Sequence[int]) -> list[bytes]:
        """Take the features that are kept; return the digests of the images that have to be encoded."""
        missing: list[bytes] = []
        for row, n_past in zip(self.rows, past, strict=True):
            for key, end in zip(row.keys, row.ends, strict=True):
                if not isinstance(key, bytes) or end <= n_past or key in self._features or key in missing:
                    continue
                features = self.kept.features(key)
                if features is None:
                    missing.append(key)
                else:
                    self._features[key] = features
        return missing

    def advance(self, images_at_once: int | None = None) -> torch.Tensor | None:
        """Compute the next piece; return the logits (B, vocab) of the last one, None before.

        images_at_once: how many images a piece may encode.
        """
        with torch.inference_mode():
            if self._missing:
                self._encode(self._missing[:images_at_once])
                self._missing = self._missing[images_at_once:] if images_at_once else []
                if self._missing or images_at_once:
                    return None
            if self._embeds is None:
                self._embeds = self._embed()
            start, end = self._done, min(self._done + self._chunk, self.n_new)
            # so many of the row's positions are in the cache after this piece; below 0: all of it is padding
            lengths = [row.n_prompt - (self.n_new - end) for row in self.rows]
            piece = self._embeds[:, start:end]
            logits = self.call(self.cache, lengths, end - start, inputs_embeds=piece)
            self._done = end
            return logits if end == self.n_new else None

    def _encode(self, digests: Sequence[bytes]) -> None:
        """Run the tower on images."""
        known = {name: image for row in self.rows for name, image in row.images.items()}
        _, model, image_processor, _ = self.loaded
        encoded = encode_images(model, image_processor, [known[one] for one in digests])
        for name, features in zip(digests, encoded, strict=True):
            self._features[name] = features
            self.kept.put_features(name, features)

    def _embed(self) -> torch.Tensor:
        """Return the embeddings (B, n_new, C) of what is computed, zeros in front of shorter rows."""
        embeds = [self._embed_row(row, n_past) for row, n_past in zip(self.rows, self._past, strict=True)]
        whole = embeds[0].new_zeros((len(embeds), self.n_new, embeds[0].shape[1]))
        for row, one in zip(whole, embeds, strict=True):
            row[self.n_new - len(one) :] = one
        self._features.clear()
        for row in self.rows:
            row.images = {}
        return whole

    def _embed_row(self, row: Row, n_past: int) -> torch.Tensor:
        """Return the embeddings (n, C) of a row's positions behind the first `n_past`."""
        first = next(index for index, end in enumerate(row.ends) if end > n_past)
        keys = row.keys[first:]
        ids = [IMAGE_TOKEN_INDEX if isinstance(one, bytes) else one for one in keys]
        features = [self._features[one] for one in keys if isinstance(one, bytes)]
        (spliced,) = splice_prompts(self.loaded.model, [ids], features)
        begin = row.ends[first - 1] if first else 0
        return spliced.embeds[n_past - begin :]
