"""`LoadedModel`: tokenizer, model and image processor together, with what needs more than one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.images import as_image, image_size
from llava.inference.decoder import Decoder
from llava.inference.dialog import Dialog, ImageSource, OpenPrompt, Prompt, RawPrompt
from llava.inference.model_inputs import check_fits, context_of, device_of, end_ids, image_length
from llava.inference.prompt import check_image_count, encode_prompt, stop_strings
from llava.inference.streaming import CONTEXT_IDS
from llava.mm_utils import tokenizer_image_token
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.media import Item, arranged, as_item
from llava.protocols import ImageProcessor
from llava.utils import UserError
from llava.video import Video

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The size that an image counts with before it is there (a URL that is not fetched yet).
NOMINAL_SIZE = (1024, 768)


class LoadedModel(NamedTuple):
    """What load_pretrained_model returns, by name; unpacks in the reference's order."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    image_processor: ImageProcessor | None  # None: a model of text alone
    context_len: int

    @classmethod
    def of(
        cls, first: Any, model: PreTrainedModel | None = None, image_processor: ImageProcessor | None = None
    ) -> LoadedModel:
        """Return the model that a caller named: by one LoadedModel (or such a tuple), or by its parts."""
        if isinstance(first, cls):
            return first
        if isinstance(first, tuple) and model is None:
            return cls(*first)
        return cls(first, model, image_processor, context_of(model))

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        return device_of(self.model)

    @property
    def context(self) -> int:
        """How many positions the model has."""
        return context_of(self.model)

    @property
    def has_tower(self) -> bool:
        """Whether images can be given."""
        return self.image_processor is not None

    def decoder(self) -> Decoder:
        """Return a new decoder, which serves one answer at a time."""
        return Decoder(self.model, self.image_processor)

    def end_ids(self, stop: Sequence[str]) -> set[int]:
        """Return the ids that end an answer: end tokens, and stop strings that are one added token."""
        return end_ids(self.model, self.tokenizer, stop)

    def read(self, asked: Dialog | RawPrompt, stop: Sequence[str] = ()) -> Prompt:
        """Return a dialog ready to run. Of image files only the headers are read, and URLs are not fetched.

        stop: strings that end the answer beside the template's. Raises UserError for what cannot be asked,
        PromptTooLong for a prompt that leaves no position for an answer.
        """
        if asked.images and not self.has_tower:
            raise UserError("it has images, but this model has no vision tower; ask it without an image")
        before = None
        if isinstance(asked, RawPrompt):
            ids, own_stop = self._raw_ids(asked), asked.stop
            before = _last_text(ids) if asked.continued else None
        else:
            messages = asked.conversation.messages
            if not messages or messages[-1][1] is not None:
                raise UserError(
                    "its last message is not None; append (roles[1], None), the answer that is wanted"
                )
            ids = encode_prompt(self.tokenizer, asked.conversation, len(asked.images))
            own_stop = stop_strings(asked.conversation)
        images = [_checked(one) for one in asked.images]
        n_positions = self._count(
            ids, [one if isinstance(one, Video) else image_size(one) or NOMINAL_SIZE for one in images]
        )
        return Prompt(ids, images, (*own_stop, *stop), n_positions, before)

    def open(self, prompt: Prompt) -> OpenPrompt:
        """Return the prompt with its images opened; raises what `read` raises, and for damaged images."""
        images = arranged([as_item(one) for one in prompt.images], self.model.config)
        n_positions = self._count(prompt.ids, images)
        return OpenPrompt(prompt.ids, images, prompt.stop, n_positions, prompt.before)

    def _count(self, ids: Sequence[int], images: Sequence[Item | tuple[int, int]]) -> int:
        """Return the positions of a prompt with these images, or of these sizes; raises PromptTooLong."""
        square = len(images) > 1 and MultimodalConfig.of(self.model.config).pads_several
        lengths = [image_length(self.model, one, square=square) for one in images]
        n_positions = len(ids) - len(lengths) + sum(lengths)
        check_fits(self.model, n_positions, has_images=bool(lengths))
        return n_positions

    def _raw_ids(self, asked: RawPrompt) -> list[int]:
        """Return the checked ids of a prompt without a template."""
        if isinstance(asked.prompt, str):
            ids = list(tokenizer_image_token(asked.prompt, self.tokenizer, IMAGE_TOKEN_INDEX))
        else:
            ids = list(asked.prompt)
            rows = self.model.get_input_embeddings().weight.shape[0]
            for one in ids:
                known = isinstance(one, int) and (0 <= one < rows or one == IMAGE_TOKEN_INDEX)
                if not known or isinstance(one, bool):
                    raise UserError(
                        f"the prompt has the token id {one!r}; expected whole numbers below {rows}"
                    )
        if not ids:
            raise UserError("the prompt is empty; write some text")
        check_image_count(ids, len(asked.images))
        return ids


def _last_text(ids: Sequence[int]) -> tuple[int, ...]:
    """Return the last ids of a prompt that are text: as many as its last characters can have."""
    tail = list(ids[-CONTEXT_IDS:])
    images = [index for index, one in enumerate(tail) if one == IMAGE_TOKEN_INDEX]
    return tuple(tail[images[-1] + 1 :] if images else tail)


def _checked(source: ImageSource) -> ImageSource:
    """Return a video or a path as it is, an image decoded; raises ImageError."""
    if isinstance(source, (str, Video)) or hasattr(source, "__fspath__"):
        return source
    return as_image(source)
