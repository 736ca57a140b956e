"""POST /v1/responses: OpenAI's newer form of a dialog; nothing is stored here."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llava.inference.engine import Piece, Ticket, Token, Waiting
from llava.serve.errors import ServeError, bad_request
from llava.serve.json_body import read_json
from llava.serve.openai.answering import FinishedAnswer, Job, finish_reason, sampling_params, unless_gone
from llava.serve.openai.dialogs import build_dialog, response_turns
from llava.serve.openai.schema import ResponseRequest, Sampling, read_request
from llava.serve.openai.service import Events, Service, new_id
from llava.serve.openai.settings import ServedModel
from llava.serve.openai.streams import comment, event
from llava.serve.openai.tokens import chat_logprobs

_LOGPROBS = "message.output_text.logprobs"


async def create_response(service: Service, request: Request) -> Response:
    """Answer a dialog. Raises ServeError."""
    asked = read_request(ResponseRequest, await read_json(request))
    served = await service.find(asked)
    for wanted in asked.include or ():
        if wanted != _LOGPROBS:
            raise bad_request(
                f"include names {wanted[:60]!r}, which is not supported by this server; it has {_LOGPROBS}",
                param="include",
                code="unsupported_parameter",
            )
    settings, model = service.settings, served.model
    params = sampling_params(
        Sampling(temperature=asked.temperature, top_p=asked.top_p),
        max_tokens=asked.max_output_tokens,
        stop=None,
        default=settings.default_max_tokens,
        most=model.most_tokens,
    )
    dialog = await unless_gone(
        request.receive,
        build_dialog(
            response_turns(asked.input, asked.instructions),
            model,
            settings.images,
            max_images=settings.max_images,
        ),
    )
    with_logprobs = bool(asked.include) or bool(asked.top_logprobs)
    form = _Form(model, asked, params.max_new_tokens, with_logprobs)
    return await service.answer(
        request,
        served.engine,
        Job([dialog], params, top_logprobs=(asked.top_logprobs or 0) if with_logprobs else None),
        response=form.response,
        stream=form.stream if asked.stream else None,
    )


class _Form:
    """The form of the answer to one request; its events are numbered."""

    def __init__(self, model: ServedModel, asked: ResponseRequest, max_tokens: int, logprobs: bool) -> None:
        self.tokenizer = model.tokenizer
        self.logprobs = logprobs
        self.item_id = new_id("msg_")
        self.number = 0
        self.head = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": asked.model,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": max_tokens,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": asked.top_p,
            "truncation": "disabled",
        }

    def response(self, tickets: list[Ticket], answers: list[FinishedAnswer]) -> dict[str, Any]:
        """Return the response in one piece."""
        (answer,) = answers
        return self._response(tickets[0], answer.text, answer.tokens)

    def _response(self, ticket: Ticket, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        status = "completed" if finish_reason(ticket) == "stop" else "incomplete"
        return {
            **self.head,
            "status": status,
            "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
            "output": [self._item(status, [self._part(text, tokens)])],
            "usage": _usage(ticket),
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._spelled(tokens)}

    def _spelled(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        return chat_logprobs(self.tokenizer, tokens)["content"] if self.logprobs else []

    async def stream(self, tickets: list[Ticket], events: Events) -> AsyncIterator[bytes]:
        """Yield the events of one answer, from response.created to response.completed (or incomplete)."""
        begun = {**self.head, "status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("response.content_part.added", **self._place(), part=self._part("", ()))
        text = ""
        tokens: list[Token] = []
        try:
            async for _, one in events:
                if isinstance(one, Piece):
                    text += one.text
                    tokens += one.tokens
                    if one.text:
                        delta = {"delta": one.text, "logprobs": self._spelled(one.tokens)}
                        yield self._event("response.output_text.delta", **self._place(), **delta)
                elif isinstance(one, Waiting):
                    yield comment(one)
        except ServeError as error:
            failed = {"code": error.code, "message": error.message}
            yield self._event("response.failed", response={**begun, "status": "failed", "error": failed})
            return
        response = self._response(tickets[0], text, tokens)
        part = self._part(text, tokens)
        done = {"text": text, "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", **self._place(), **done)
        yield self._event("response.content_part.done", **self._place(), part=part)
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _event(self, name: str, **content: object) -> bytes:
        self.number += 1
        return event({"type": name, "sequence_number": self.number - 1, **content}, name)


def _usage(ticket: Ticket) -> dict[str, Any] | None:
    """Return the usage of an answer in the words of this endpoint; None: not known."""
    usage = ticket.usage
    if not usage.counted:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
