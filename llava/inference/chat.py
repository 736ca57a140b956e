"""One conversation with one model: questions, images, streamed answers, and what is kept between turns."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, conversation_for
from llava.inference.answer import stream_answer
from llava.inference.decoder import Decoder
from llava.inference.model import LoadedModel
from llava.inference.prompt import Images, encode_prompt, one_or_many, read_question, stop_strings
from llava.inference.sampling import SamplingParams
from llava.inference.streaming import TextStream
from llava.protocols import ImageProcessor
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ChatSession:
    """A conversation with a loaded model; a turn is `ask` (whole answer) or `stream` (pieces of text).

    `conversation` is the dialog so far and may be edited between turns, `images` are its images in order.
    `finish_reason` tells how the last answer ended: "stop" (end token or stop string), "length"
    (max_new_tokens), "context" (the context is full) or "interrupted". An interrupted answer stays in the
    dialog as far as it was given; if no text had come, or the turn failed, the turn is withdrawn.
    The model is one LoadedModel, or given by its parts (tokenizer, model, image_processor).
    `decoder` holds the KV cache and the image features between turns; sessions may share one, one at a time.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None = None,
        image_processor: ImageProcessor | None = None,
        *,
        template: str | Conversation,
        decoder: Decoder | None = None,
    ) -> None:
        self.loaded = LoadedModel.of(tokenizer, model, image_processor)
        self.tokenizer, self.model, self.image_processor, _ = self.loaded
        self.template = conversation_for(template, self.tokenizer)
        self.decoder = self.loaded.decoder() if decoder is None else decoder
        self._answering = False
        self.reset()

    def reset(self) -> None:
        """Begin a new dialog; what the decoder keeps is used again if the new one begins like the old one."""
        self.conversation = self.template.copy()
        self.images: list[Image.Image] = []
        self.finish_reason = "stop"

    def forget(self) -> None:
        """Drop what is kept between turns (KV cache, image features); the dialog stays.

        Changes of the model are noticed without it, except those that nothing tells (single values written
        through `.data`).
        """
        self.decoder.forget()

    def ask(
        self,
        text: str,
        images: Images | None = (),
        params: SamplingParams | None = None,
        **settings: Any,
    ) -> str:
        """Return the answer to a question; see `stream`."""
        return "".join(self.stream(text, images, params, **settings))

    def stream(
        self,
        text: str,
        images: Images | None = (),
        params: SamplingParams | None = None,
        *,
        image: Images | None = None,
        **settings: object,
    ) -> Generator[str, None, None]:
        """Return a generator of the pieces of the answer; closing it, or Ctrl-C meanwhile, ends the answer.

        images (or image): Pillow images, paths or URLs that belong to this turn (see `place_image_tokens` for
        where they go). settings: as in SamplingParams, on top of params (`temperature=0`).
        Raises UserError at once for an empty question, an unreadable image or a wrong number of image tokens,
        and on the first piece for a prompt that does not fit the context, or while another answer is running.
        """
        params = SamplingParams.of(params, **settings)
        question, opened = read_question(
            text,
            one_or_many(image, images),
            self.model.config,
            has_tower=self.image_processor is not None,
        )
        return self._turn(question, opened, params)

    def _turn(
        self, question: str, images: list[Image.Image], params: SamplingParams
    ) -> Generator[str, None, None]:
        """Append a question, yield the answer's pieces, and leave the dialog in order however it ends."""
        if self._answering:
            raise UserError("the last answer is not finished; read it to its end or close it, then ask")
        self._answering = True
        dialog = self.conversation
        n_messages, n_images = len(dialog.messages), len(self.images)
        stream = TextStream(self.tokenizer, stop_strings(dialog) + params.stop)
        dialog.append_message(dialog.roles[0], question)
        dialog.append_message(dialog.roles[1], None)
        self.images.extend(images)
        self.finish_reason = "interrupted"
        answered = False
        try:
            yield from self._answer(stream, params)
            answered = True
        except (KeyboardInterrupt, GeneratorExit):
            answered = bool(stream.text)
            raise
        finally:
            self._answering = False
            if answered:
                # an image token that the model spelled out is text, it must not ask for an image next time
                dialog.messages[-1][1] = stream.text.replace(DEFAULT_IMAGE_TOKEN, "")
            else:
                del dialog.messages[n_messages:]
                del self.images[n_images:]

    def _answer(self, stream: TextStream, params: SamplingParams) -> Iterator[str]:
        """Yield the pieces of an answer and set `finish_reason`."""
        ids = encode_prompt(self.tokenizer, self.conversation, len(self.images))
        self.finish_reason = yield from stream_answer(
            self.decoder, self.tokenizer, ids, self.images, params, stream
        )
