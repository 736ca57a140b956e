"""The worker with a model: requests of the reference's protocol, answered by an engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from typing import Any

from llava.conversation import CHAT_TEMPLATE, Conversation, conversation_for
from llava.inference.dialog import Dialog, RawPrompt
from llava.inference.engine import Alone, AnyEngine, Engine, Piece, PromptTooLong, Ticket
from llava.inference.engine.engine import DEFAULT_CACHE_BYTES
from llava.inference.loading import LoadedModel, open_model
from llava.inference.messages import read_messages
from llava.inference.prompt import pick_conv_mode
from llava.mm_utils import get_model_name_from_path
from llava.model.multimodal.config import MultimodalConfig
from llava.serve.errors import bad_request
from llava.serve.openai.answering import serve_error
from llava.serve.workers.base import BaseWorker
from llava.serve.workers.frames import MESSAGES, ErrorCode, error_frame, frame
from llava.serve.workers.params import TOO_LONG, WorkerParams
from llava.utils import UserError

logger = logging.getLogger(__name__)

MAX_WAITING = 256


class ModelWorker(BaseWorker):
    """A worker that answers with the model of a checkpoint.

    The first ten arguments are the reference's. limit_model_concurrency: answers at a time; others wait, and
    are sent a frame each second, so that nobody between takes the worker for dead. cache_bytes: what earlier
    prompts may leave for later ones. compile: decode an answer that runs alone with torch.compile. Raises
    UserError for a checkpoint that cannot be loaded or compiled.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_path: str,
        model_base: str | None,
        model_name: str | None,
        load_8bit: bool = False,
        load_4bit: bool = False,
        device: str | None = None,
        use_flash_attn: bool = False,
        *,
        limit_model_concurrency: int = 5,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        compile: bool = False,
        api_key: str | None = None,
    ) -> None:
        name = model_name or get_model_name_from_path(model_path)
        super().__init__(
            None if no_register else controller_addr, worker_addr, worker_id, [name], api_key=api_key
        )
        began = time.monotonic()
        self.loaded: LoadedModel = open_model(
            model_path,
            model_base,
            name,
            device=device,
            load_8bit=load_8bit,
            load_4bit=load_4bit,
            use_flash_attn=use_flash_attn,
        )
        logger.info("loaded %s in %.1f s", name, time.monotonic() - began)
        self.is_multimodal = self.loaded.has_tower
        self._template, reason = pick_conv_mode(None, name, self.loaded.model.config)
        self._empty: Conversation = conversation_for(self._template, self.loaded.tokenizer)
        logger.info("conversation mode: %s (%s)", self._template, reason)
        self.engine: AnyEngine = Engine(
            self.loaded,
            max_running=limit_model_concurrency,
            max_waiting=MAX_WAITING,
            cache_bytes=cache_bytes,
            alone=Alone(self.loaded.model) if compile else None,
        )
        self.start()

    @property
    def template(self) -> str:
        """The template that the checkpoint asks for."""
        return self._template

    @property
    def takes_messages(self) -> bool:
        """True: the tokenizer is here, also for a template that is the tokenizer's own."""
        return True

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self.engine.alive

    def close(self, drain_seconds: float = 0.0) -> None:
        """End the heart beats and the engine; running answers get `drain_seconds`."""
        super().close()
        self.engine.close(drain_seconds)

    def get_queue_length(self) -> int:
        """Return how many requests run or wait."""
        stats = self.engine.stats()
        return stats.running + stats.waiting

    def generate_stream(self, params: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """Yield the frames of an answer: the prompt and the answer so far, at least one frame a second.

        To messages it is the answer alone.
        Raises UserError, ServeError or EngineError. Closing the generator ends the answer.
        """
        self._check_model(params.get("model"))
        request = WorkerParams.read(params, takes_messages=self.takes_messages)
        text = request.prompt
        try:
            ticket = self.engine.submit(self._asked(request), request.sampling)
        except PromptTooLong as error:
            yield error_frame(ErrorCode.NONE, serve_error(error), request.prompt + TOO_LONG)
            return
        logger.info("request %d: %d positions, place %d", ticket.id, ticket.usage.prompt_tokens, ticket.place)
        for event in ticket:
            if isinstance(event, Piece):
                text += event.text
                yield frame(text, usage=_usage(ticket))
            else:
                yield frame(text)
        yield frame(text, usage=_usage(ticket), finish_reason=ticket.finish_reason)
        logger.info(
            "request %d: %d tokens, %s", ticket.id, ticket.usage.completion_tokens, ticket.finish_reason
        )

    def _asked(self, request: WorkerParams) -> Dialog | RawPrompt:
        """Return what the engine is asked. Raises ServeError, UserError."""
        config = self.loaded.model.config
        if request.messages is not None:
            try:
                return read_messages(request.messages, self._empty, config, has_tower=self.loaded.has_tower)
            except UserError as error:
                raise bad_request(str(error), param=MESSAGES) from error
        if self._template == CHAT_TEMPLATE and not request.raw:
            raise bad_request(
                f"the template of {self.model_names[0]!r} is its tokenizer's own, which clients "
                "cannot render; send messages in place of prompt (or raw: true with a prompt that is to be "
                "continued as it stands)",
                param="prompt",
                code="messages_needed",
            )
        return request.raw_prompt(start_end=MultimodalConfig.of(config).use_im_start_end)

    def _check_model(self, name: object) -> None:
        """Raise ServeError for a model that this worker does not have; none at all is this one."""
        if name is not None and name not in self.model_names:
            raise bad_request(
                f"this worker has {self.model_names[0]!r}, not {str(name)[:200]!r}", param="model"
            )


def _usage(ticket: Ticket) -> dict[str, int]:
    """Return the usage of an answer so far, for programs that count tokens."""
    usage = ticket.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }
