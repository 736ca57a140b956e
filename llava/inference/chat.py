"""One conversation with one model: prompt, images, streamed answers, and the KV cache kept between turns."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, conv_templates
from llava.inference.prompt import place_image_tokens, stop_strings
from llava.inference.sampling import NextToken, SamplingParams
from llava.inference.streaming import TextStream
from llava.mm_utils import load_image, process_images, tokenizer_image_token
from llava.model.mm_config import MultimodalConfig
from llava.utils import UserError


class ChatSession:
    """A conversation with a loaded model; a turn is `ask` (whole answer) or `stream` (pieces of text).

    `conversation` is the dialog so far and may be edited between turns, `images` are its images in order.
    `finish_reason` tells how the last answer ended: "stop" (end token or stop string), "length"
    (max_new_tokens), "context" (the context is full) or "interrupted". An interrupted answer stays in the
    dialog as far as it was given; if no text had come, or the turn failed, the turn is withdrawn.
    """

    def __init__(
        self, tokenizer: Any, model: Any, image_processor: Any = None, *, template: str | Conversation
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.image_processor = image_processor
        self.template = conv_templates[template] if isinstance(template, str) else template
        self._mm = MultimodalConfig.of(model.config)
        self._prefix = _Prefix()
        self.reset()

    def reset(self) -> None:
        """Forget the dialog, its images and the cache."""
        self.conversation = self.template.copy()
        self.images: list[Image.Image] = []
        self.finish_reason = "stop"
        self._prefix = _Prefix()

    def ask(
        self,
        text: str,
        images: Sequence[Image.Image | str | Path] = (),
        params: SamplingParams | None = None,
    ) -> str:
        """Return the answer to a question; see `stream`."""
        return "".join(self.stream(text, images, params))

    def stream(
        self,
        text: str,
        images: Sequence[Image.Image | str | Path] = (),
        params: SamplingParams | None = None,
    ) -> Generator[str, None, None]:
        """Return a generator of the pieces of the answer; closing it, or Ctrl-C meanwhile, ends the answer.

        images: pictures, paths or URLs that belong to this turn (see `place_image_tokens` for where they go).
        Raises UserError at once for an empty question, an unreadable image or a wrong number of image tokens,
        and on the first piece for a prompt that does not fit the context.
        """
        params = params or SamplingParams()
        if not text.strip() and not images:
            raise UserError("the question is empty; write some text or give an image")
        pictures = [one if isinstance(one, Image.Image) else load_image(one) for one in images]
        if pictures and self.image_processor is None:
            raise UserError("an image was given, but this model has no vision tower; ask it without an image")
        question = place_image_tokens(text, len(pictures), start_end=self._mm.use_im_start_end)
        return self._turn(question, pictures, params)

    def _turn(
        self, question: str, pictures: list[Image.Image], params: SamplingParams
    ) -> Generator[str, None, None]:
        """Append a question, yield the answer's pieces, and leave the dialog in order however it ends."""
        dialog = self.conversation
        n_messages, n_images = len(dialog.messages), len(self.images)
        stream = TextStream(self.tokenizer, stop_strings(dialog) + params.stop)
        dialog.append_message(dialog.roles[0], question)
        dialog.append_message(dialog.roles[1], None)
        self.images.extend(pictures)
        self.finish_reason = "interrupted"
        answered = False
        try:
            yield from self._answer(stream, params)
            answered = True
        except (KeyboardInterrupt, GeneratorExit):
            answered = bool(stream.text)
            raise
        finally:
            if answered:
                # an image token that the model spelled out is text, it must not ask for an image next time
                dialog.messages[-1][1] = stream.text.replace(DEFAULT_IMAGE_TOKEN, "")
            else:
                del dialog.messages[n_messages:]
                del self.images[n_images:]

    def _answer(self, stream: TextStream, params: SamplingParams) -> Iterator[str]:
        """Yield the pieces of an answer and set `finish_reason`."""
        ids = list(tokenizer_image_token(self.conversation.get_prompt(), self.tokenizer, IMAGE_TOKEN_INDEX))
        n_tokens = ids.count(IMAGE_TOKEN_INDEX)
        if n_tokens != len(self.images):
            raise UserError(
                f"the prompt has {n_tokens} image token(s) but the dialog has {len(self.images)} image(s); "
                f"write {DEFAULT_IMAGE_TOKEN} once for each image"
            )
        ends = self._end_ids(stream.stop)
        new_ids = self._beam_search(ids, params) if params.num_beams > 1 else self._tokens(ids, params)
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
                reason = "stop"
                break
        if piece := stream.end():
            yield piece
        if reason == "length" and n_new < params.max_new_tokens:
            reason = "context"
        self.finish_reason = "stop" if stream.stopped else reason

    def _end_ids(self, stop: Sequence[str]) -> set[int]:
        """Return the ids that end an answer: end tokens, and stop strings that are one added token."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends = set(configured) if isinstance(configured, (list, tuple)) else {configured}
        added = self.tokenizer.get_added_vocab()
        ends |= {self.tokenizer.eos_token_id, *(added[one] for one in stop if one in added)}
        return {one for one in ends if one is not None}

    def _tokens(self, ids: list[int], params: SamplingParams) -> Iterator[int]:
        """Yield new ids until max_new_tokens or the end of the context; the caller stops at an end id."""
        choose = NextToken(params, self.model.generation_config, self._device)
        logits = self._prefill(ids)
        room = self._context - self._prefix.n_positions
        new_ids: list[int] = []
        for step in range(min(params.max_new_tokens, room)):
            if step:
                logits = self._forward(new_ids[-1:], input_ids=self._tensor(new_ids[-1:]))
            new_ids.append(choose(logits, new_ids))
            yield new_ids[-1]

    def _prefill(self, ids: list[int]) -> torch.Tensor:
        """Bring what is missing of the prompt into the cache; return the last logits (1, vocab)."""
        self._check_fits(len(ids), self._context)
        kept = self._prefix.reuse(ids, self.images)
        rest = ids[kept:]
        if kept == 0:
            self._prefix = _Prefix()
        if IMAGE_TOKEN_INDEX not in rest:
            self._check_fits(self._prefix.n_positions + len(rest), self._context)
            return self._forward(rest, input_ids=self._tensor(rest))
        embeds = self._embed(rest)  # (1, n_positions, hidden)
        self._prefix.images = list(self.images)
        return self._forward(rest, inputs_embeds=embeds)

    def _embed(self, ids: list[int]) -> torch.Tensor:
        """Return the embeddings (1, n_positions, hidden) of a prompt with its images in place."""
        pixels, sizes = self._pixels()
        with torch.inference_mode():
            *_, embeds, _ = self.model.prepare_inputs_labels_for_multimodal(
                self._tensor(ids), None, None, None, None, pixels, image_sizes=sizes
            )
        limit = self._context if self._mm.max_length is None else min(self._context, self._mm.max_length)
        self._check_fits(embeds.shape[1], limit)  # the splice cuts at config.tokenizer_model_max_length
        return embeds

    def _pixels(self) -> tuple[torch.Tensor | list[torch.Tensor], list[tuple[int, int]]]:
        """Return the images as the model takes them, and their sizes (width, height)."""
        pixels = process_images(self.images, self.image_processor, self.model.config)
        if isinstance(pixels, list):
            moved: Any = [one.to(self._device, dtype=self.model.dtype) for one in pixels]
        else:
            moved = pixels.to(self._device, dtype=self.model.dtype)  # (n_img, [n_tiles,] 3, height, width)
        return moved, [one.size for one in self.images]

    def _forward(self, ids: list[int], **inputs: torch.Tensor) -> torch.Tensor:
        """Run the model on what follows the cached prefix and cache it; return the last logits (1, vocab)."""
        # an interrupt in the middle must not leave a half-filled cache behind
        prefix, self._prefix = self._prefix, _Prefix()
        with torch.inference_mode():
            out = self.model(**inputs, past_key_values=prefix.cache, use_cache=True, logits_to_keep=1)
        n_new = next(iter(inputs.values())).shape[1]
        prefix.extend(ids, n_new, out.past_key_values)
        self._prefix = prefix
        return out.logits[:, -1]

    def _beam_search(self, ids: list[int], params: SamplingParams) -> list[int]:
        """Return the new ids of `model.generate`, which knows beams; its answer comes in one piece."""
        self._prefix = _Prefix()
        kwargs = params.generate_kwargs()
        kwargs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.long, device=self._device)
        kwargs["pad_token_id"] = self.tokenizer.pad_token_id
        n_positions = len(ids)
        if self.images:
            n_positions = self._embed(ids).shape[1]
            kwargs["images"], kwargs["image_sizes"] = self._pixels()
        self._check_fits(n_positions, self._context)
        kwargs["max_new_tokens"] = min(params.max_new_tokens, self._context - n_positions)
        with torch.inference_mode(), torch.random.fork_rng(enabled=params.seed is not None):
            if params.seed is not None:
                torch.manual_seed(params.seed)
            new_ids = self.model.generate(self._tensor(ids), **kwargs)  # (1, n_new)
        return new_ids[0].tolist()

    def _check_fits(self, n_positions: int, limit: int) -> None:
        """Raise UserError for a prompt that leaves no position for an answer."""
        if n_positions >= limit:
            raise UserError(
                f"the prompt takes at least {n_positions} positions, but this model takes {limit}, answer "
                "included; ask a shorter question, use fewer images or start a new conversation"
            )

    @property
    def _context(self) -> int:
        """Return how many positions the model has (MPT calls it max_seq_len)."""
        config = self.model.config
        for name in ("max_position_embeddings", "max_seq_len", "max_sequence_length"):
            if value := getattr(config, name, None):
                return int(value)
        return 2048  # the reference's fallback

    @property
    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self._device)  # (1, n)


class _Prefix:
    """What the KV cache holds: ids (an image is one IMAGE_TOKEN_INDEX), images, and how many positions."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.ids: list[int] = []
        self.images: list[Image.Image] = []
        self.n_positions = 0

    def extend(self, ids: list[int], n_positions: int, cache: Any) -> None:
        """Note that `ids` have been added to the cache, on `n_positions` positions."""
        self.cache = cache
        self.ids = self.ids + ids
        self.n_positions += n_positions

    def reuse(self, ids: list[int], images: list[Image.Image]) -> int:
        """Cut the cache back to what it shares with a new prompt; return how many ids that are.

        All images or none: with an image behind the shared part everything is computed anew. At least one id
        is left over, for its logits. 0 means that the cache is of no use.
        """
        kept = 0
        for old, new in zip(self.ids, ids[:-1], strict=False):
            if old != new:
                break
            kept += 1
        same_images = len(images) == len(self.images) and all(
            a is b for a, b in zip(images, self.images, strict=True)
        )
        if kept == 0 or not same_images or IMAGE_TOKEN_INDEX in ids[kept:] + self.ids[kept:]:
            return 0
        excess = len(self.ids) - kept
        if excess:
            try:
                self.cache.crop(-excess)
            except (RuntimeError, ValueError):  # a sliding window that has moved on cannot be cut back
                return 0
        self.ids = self.ids[:kept]
        self.n_positions -= excess
        return kept
