"""POST /v1/completions: text or token ids, continued as they stand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.inference.engine import Piece, RawPrompt, Ticket, Token, Waiting
from llava.serve.errors import bad_request
from llava.serve.json_body import read_json
from llava.serve.openai.answering import (
    FinishedAnswer,
    Job,
    finish_reason,
    read_logit_bias,
    sampling_params,
    usage_of,
)
from llava.serve.openai.schema import CompletionRequest, read_request
from llava.serve.openai.service import Events, Service, new_id
from llava.serve.openai.settings import ServedModel
from llava.serve.openai.streams import DONE, comment, event
from llava.serve.openai.tokens import completion_logprobs

_DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this endpoint


async def create_completion(service: Service, request: Request) -> Response:
    """Continue texts. Raises ServeError."""
    asked = read_request(CompletionRequest, await read_json(request))
    served = await service.find(asked)
    if asked.stream_options is not None and not asked.stream:
        raise bad_request("stream_options needs stream to be true", param="stream_options")
    model = served.model
    params = sampling_params(
        asked,
        max_tokens=asked.max_tokens,
        stop=asked.stop,
        default=_DEFAULT_MAX_TOKENS,
        most=model.most_tokens,
    )
    bias = read_logit_bias(asked.logit_bias, model.vocabulary)
    given = _prompts(asked.prompt)
    model.check_length(max(len(one) if isinstance(one, str) else 0 for one in given), "prompt")
    prompts = [RawPrompt(_checked(one, model), continued=True) for one in given]
    form = _Form(model, asked)
    return await service.answer(
        request,
        served.engine,
        Job(prompts, params, asked.n or 1, asked.logprobs, bias),
        response=form.response,
        stream=form.stream if asked.stream else None,
    )


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Return the prompts of a request, which may be one or several, texts or ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [[one for one in given if isinstance(one, int)]]
    return [one for one in given if not isinstance(one, int)]


def _checked(prompt: str | list[int], model: ServedModel) -> str | list[int]:
    """Return a prompt that holds no image token and only ids of the model. Raises ServeError."""
    if isinstance(prompt, str):
        if not prompt:
            raise bad_request("the prompt is empty; write some text", param="prompt")
        if DEFAULT_IMAGE_TOKEN in prompt:
            raise bad_request(
                f"the prompt has {DEFAULT_IMAGE_TOKEN}, but this endpoint takes no images; use "
                "/v1/chat/completions",
                param="prompt",
            )
    elif not model.by_worker and max(prompt) >= model.vocabulary:
        raise bad_request(
            f"the prompt has the token id {max(prompt)}; expected ids from 0 to {model.vocabulary - 1}",
            param="prompt",
        )
    return prompt


class _Form:
    """The form of the answers to one request."""

    def __init__(self, model: ServedModel, asked: CompletionRequest) -> None:
        self.tokenizer = model.tokenizer
        self.n = asked.n or 1
        self.logprobs = asked.logprobs is not None
        self.with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self.head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
        }

    def response(self, tickets: list[Ticket], answers: list[FinishedAnswer]) -> dict[str, Any]:
        """Return the response in one piece."""
        choices = [
            self._choice(index, one.text, one.tokens, 0, one.finish_reason)
            for index, one in enumerate(answers)
        ]
        return {**self.head, "choices": choices, "usage": usage_of(tickets, self.n)}

    async def stream(self, tickets: list[Ticket], events: Events) -> AsyncIterator[bytes]:
        """Yield the response in pieces; why an answer ended comes with its last one."""
        written = [0] * len(tickets)
        async for index, one in events:
            if isinstance(one, Piece):
                if one.text or (self.logprobs and one.tokens):
                    choice = self._choice(index, one.text, one.tokens, written[index], None)
                    written[index] += len(one.text)
                    yield self._event([choice], None)
            elif isinstance(one, Waiting):
                yield comment(one)
            else:
                yield self._event([self._choice(index, "", (), 0, finish_reason(tickets[index]))], None)
        if self.with_usage:
            yield self._event([], usage_of(tickets, self.n))
        yield DONE

    def _choice(
        self, index: int, text: str, tokens: list[Token] | tuple[Token, ...], offset: int, reason: str | None
    ) -> dict[str, Any]:
        logprobs = completion_logprobs(self.tokenizer, tokens, offset) if self.logprobs and tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], usage: object) -> bytes:
        content = {**self.head, "choices": choices}
        return event({**content, "usage": usage} if self.with_usage else content)
