"""The short way for notebooks and scripts: `model = llava.load(path)`, then `model.chat(...)`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, conversation_for
from llava.inference.batch import DEFAULT_BATCH_SIZE, Reader, answer_all
from llava.inference.chat import ChatSession
from llava.inference.compiled import CompiledDecoder
from llava.inference.decoder import Decoder
from llava.inference.dialog import Answer, Dialog, ImageSource
from llava.inference.loading import open_model
from llava.inference.messages import Message, history_of, is_messages, read_messages
from llava.inference.model import LoadedModel
from llava.inference.model_inputs import device_of
from llava.inference.pool import DecoderPool
from llava.inference.prompt import Images, new_dialog, one_or_many, pick_conv_mode, with_system
from llava.inference.sampling import SamplingParams
from llava.inference.sharded import answer_sharded
from llava.mm_utils import get_model_name_from_path
from llava.model.multimodal.media import as_item
from llava.utils import UserError

Question = str | tuple[str, Images] | Sequence[Message] | Dialog


def load(
    model_path: str | Path,
    model_base: str | Path | None = None,
    *,
    template: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    compile: bool = False,
) -> Assistant:
    """Load a checkpoint (folder or hub name) for asking.

    model_base: base model of a LoRA or projector-only checkpoint. template: key of conv_templates (default:
    read off the checkpoint). device, dtype: the best device present, and a dtype that is fast there.
    compile: decode with torch.compile, see CompiledDecoder; then one answer runs at a time. Raises UserError
    (CheckpointError) in one sentence for what cannot be loaded.
    """
    name = get_model_name_from_path(str(model_path))
    loaded = open_model(
        str(model_path),
        None if model_base is None else str(model_base),
        name,
        device=device,
        dtype=dtype,
        load_8bit=load_8bit,
        load_4bit=load_4bit,
    )
    chosen, _ = pick_conv_mode(template, name, loaded.model.config)
    decoder = CompiledDecoder(loaded.model, loaded.image_processor) if compile else None
    return Assistant(loaded, conversation_for(chosen, loaded.tokenizer), decoder)


class Assistant:
    """A loaded model that answers. Each call is a dialog of its own; `session` gives one that goes on.

    Settings of an answer (temperature, top_p, top_k, num_beams, max_new_tokens, seed, stop) are keywords; see
    SamplingParams for their ranges and defaults. A second question about the image before costs only its
    own tokens. `decoder`: one that serves all questions and sessions, an answer at a time (default: as many
    as there are answers at a time).
    """

    def __init__(self, loaded: LoadedModel, template: Conversation, decoder: Decoder | None = None) -> None:
        self.loaded = loaded
        self.tokenizer, self.model, self.image_processor, self.context_len = loaded
        self.template = conversation_for(template, loaded.tokenizer)
        self._shared = decoder
        self._pool = DecoderPool(loaded.decoder)

    def __repr__(self) -> str:
        return (
            f"<{type(self.model).__name__} on {device_of(self.model)} in {self.model.dtype}, for llava.load>"
        )

    def forget(self) -> None:
        """Drop what is kept for the next question; see ChatSession.forget."""
        self._pool.forget()
        if self._shared is not None:
            self._shared.forget()

    def chat(self, text: str | Sequence[Message], images: Images | None = (), **settings: Any) -> str:
        """Return the answer to one question, or to a dialog in OpenAI's form; see `stream`."""
        return "".join(self.stream(text, images, **settings))

    def stream(
        self,
        text: str | Sequence[Message],
        images: Images | None = (),
        *,
        image: Images | None = None,
        system: str | None = None,
        **settings: object,
    ) -> Generator[str, None, None]:
        """Return a generator of the pieces of the answer to one question.

        images (or image): Pillow images, paths or URLs; they go where the text says `<image>`, else in front
        of it. system: text in place of the template's own. In place of the text a dialog in OpenAI's form may
        stand, which brings its images (see messages.read_messages). Raises UserError at once for settings,
        images and texts that cannot be used, on the first piece for a prompt that is too long.
        """
        params = SamplingParams.of(**settings)
        given = one_or_many(image, images)
        if is_messages(text):
            session, question, given = self._last_question(text, given, system)
        else:
            session, question = self.session(system=system), cast(str, text)
        pieces = session.stream(question, given, params)
        return pieces if self._shared is not None else self._lend_decoder(session, pieces)

    def _last_question(
        self, messages: Sequence[Message], given: Images, system: str | None
    ) -> tuple[ChatSession, str, Sequence[ImageSource]]:
        """Return a session with all but the last of the messages, and the last one's text and images."""
        if given or system is not None:
            raise UserError("images and system belong into the messages; omit the arguments")
        dialog = self._read(messages)
        dialog.conversation.messages.pop()
        question = dialog.conversation.messages.pop()[1]
        n_own = question.count(DEFAULT_IMAGE_TOKEN)
        session = self._session_of(dialog.conversation, dialog.images[: len(dialog.images) - n_own])
        return session, question, dialog.images[len(dialog.images) - n_own :]

    def _read(self, messages: Sequence[Message]) -> Dialog:
        return read_messages(messages, self.template, self.model.config, has_tower=self.loaded.has_tower)

    def _session_of(self, conversation: Conversation, images: Sequence[ImageSource]) -> ChatSession:
        """Return a session that begins with these turns and images."""
        session = self.session()
        session.conversation = conversation
        session.images = [as_item(one) for one in images]
        return session

    def _lend_decoder(
        self, session: ChatSession, pieces: Generator[str, None, None]
    ) -> Generator[str, None, None]:
        """Yield an answer's pieces from an idle decoder, which serves the next question afterwards."""
        with self._pool.lend() as session.decoder, contextlib.closing(pieces):
            yield from pieces

    def session(self, messages: Sequence[Message] | None = None, *, system: str | None = None) -> ChatSession:
        """Return a new conversation that remembers: `.ask(text, images)`, `.stream(text, images)`.

        messages: turns that it begins with, in OpenAI's form; the last one is the assistant's.
        """
        if messages is not None:
            if system is not None:
                raise UserError("system belongs into the messages; omit the argument")
            conversation, images = history_of(
                messages, self.template, self.model.config, has_tower=self.loaded.has_tower
            )
            if conversation.messages[-1][0] == conversation.roles[0]:
                raise UserError("the last message is a user's; give it to ask, or all of them to chat")
            return self._session_of(conversation, images)
        template = self.template if system is None else with_system(self.template, system)
        return ChatSession(self.loaded, template=template, decoder=self._shared)

    def batch(
        self,
        questions: Iterable[Question],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        sharded: bool = False,
        **settings: object,
    ) -> list[str]:
        """Return the answers to many questions.

        A question is a text, a (text, images) pair, a dialog in OpenAI's form or a Dialog. Image files are
        opened when their turn comes; see generate_batch.
        sharded: split them over the processes of `accelerate launch` or `torchrun`; each gets all answers.
        """
        return [
            one.text for one in self.answers(questions, batch_size=batch_size, sharded=sharded, **settings)
        ]

    def answers(
        self,
        questions: Iterable[Question],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        sharded: bool = False,
        **settings: object,
    ) -> list[Answer]:
        """Return what `batch` returns, with token ids and why each answer ended."""
        if isinstance(questions, (str, bytes, Dialog)) or not isinstance(questions, Iterable):
            raise UserError(
                f"batch takes a list of questions and got a {type(questions).__name__}; "
                "put it in a list, or use chat for a single question"
            )
        reader = Reader(self.loaded, SamplingParams.of(**settings), self._dialog, "question")
        if sharded:
            return answer_sharded(reader, questions, batch_size=batch_size)
        found = answer_all(reader, questions, batch_size=batch_size)
        return [found[index] for index in range(len(found))]

    def _dialog(self, question: Question) -> Dialog:
        """Turn a question into a dialog."""
        if isinstance(question, Dialog):
            return question
        if is_messages(question):
            return self._read(question)
        if isinstance(question, str):
            question = (question, ())
        if not isinstance(question, (tuple, list)) or len(question) != 2:
            raise UserError(
                f"it is a {type(question).__name__}; expected a text, (text, images), a list of messages "
                "or a Dialog"
            )
        text, images = cast(tuple[str, Images | None], question)
        return new_dialog(
            self.template,
            text,
            one_or_many(None, images),
            self.model.config,
            has_tower=self.loaded.has_tower,
        )
