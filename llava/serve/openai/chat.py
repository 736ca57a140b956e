"""POST /v1/chat/completions: dialogs with images, answered whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llava.inference.engine import Piece, Ticket, Waiting
from llava.serve.errors import bad_request
from llava.serve.json_body import read_json
from llava.serve.openai.answering import (
    FinishedAnswer,
    Job,
    finish_reason,
    read_logit_bias,
    sampling_params,
    unless_gone,
    usage_of,
)
from llava.serve.openai.dialogs import build_dialog, chat_turns
from llava.serve.openai.schema import ChatRequest, read_request
from llava.serve.openai.service import Events, Service, new_id
from llava.serve.openai.settings import ServedModel
from llava.serve.openai.streams import DONE, comment, event
from llava.serve.openai.tokens import chat_logprobs


async def create_chat_completion(service: Service, request: Request) -> Response:
    """Answer a dialog. Raises ServeError."""
    asked = read_request(ChatRequest, await read_json(request))
    served = await service.find(asked)
    _check_together(asked)
    settings, model = service.settings, served.model
    params = sampling_params(
        asked,
        max_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        stop=asked.stop,
        default=settings.default_max_tokens,
        most=model.most_tokens,
    )
    bias = read_logit_bias(asked.logit_bias, model.vocabulary)
    dialog = await unless_gone(
        request.receive,
        build_dialog(chat_turns(asked.messages), model, settings.images, max_images=settings.max_images),
    )
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    form = _Form(model, asked)
    return await service.answer(
        request,
        served.engine,
        Job([dialog], params, asked.n or 1, top, bias),
        response=form.response,
        stream=form.stream if asked.stream else None,
    )


def _check_together(asked: ChatRequest) -> None:
    """Raise ServeError for fields that do not go together."""
    if asked.top_logprobs is not None and not asked.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise bad_request("stream_options needs stream to be true", param="stream_options")


class _Form:
    """The form of the answers to one request."""

    def __init__(self, model: ServedModel, asked: ChatRequest) -> None:
        self.tokenizer = model.tokenizer
        self.n = asked.n or 1
        self.logprobs = bool(asked.logprobs)
        self.with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self.head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": asked.model}

    def response(self, tickets: list[Ticket], answers: list[FinishedAnswer]) -> dict[str, Any]:
        """Return the response in one piece."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "logprobs": chat_logprobs(self.tokenizer, one.tokens) if self.logprobs else None,
                "finish_reason": one.finish_reason,
            }
            for index, one in enumerate(answers)
        ]
        usage = usage_of(tickets, self.n)
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage}

    async def stream(self, tickets: list[Ticket], events: Events) -> AsyncIterator[bytes]:
        """Yield the response in pieces: each answer's role first, why it ended last; then the usage."""
        for index in range(len(tickets)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, one in events:
            if isinstance(one, Piece):
                logprobs = chat_logprobs(self.tokenizer, one.tokens) if self.logprobs else None
                if one.text or (logprobs and one.tokens):
                    yield self._chunk(index, {"content": one.text}, logprobs=logprobs)
            elif isinstance(one, Waiting):
                yield comment(one)
            else:
                yield self._chunk(index, {}, finish_reason(tickets[index]))
        if self.with_usage:
            yield self._event([], usage_of(tickets, self.n))
        yield DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._event([choice], None)

    def _event(self, choices: list[dict[str, Any]], usage: object) -> bytes:
        content = {**self.head, "object": "chat.completion.chunk", "choices": choices}
        return event({**content, "usage": usage} if self.with_usage else content)
