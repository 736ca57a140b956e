"""Answers of the models that a controller knows, over the reference's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx2

from llava.conversation import Conversation, conv_templates, template_of
from llava.serve.errors import ServeError, bad_request
from llava.serve.web.asking import Progress, Question
from llava.serve.workers import frames
from llava.serve.workers.client import encode_png, stream_frames
from llava.serve.workers.discovery import Discovery, Way, template_for, way_to_ask
from llava.serve.workers.frames import MESSAGES
from llava.serve.workers.messages import messages_of
from llava.utils import UserError


class ControllerBackend:
    """Asks a controller, which sends each request on to a worker."""

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        self.address = address.rstrip("/")
        self._api_key = api_key
        self._discovery = Discovery(self.address, api_key=api_key)
        self._told: Mapping[str, Any] = {}  # what the controller said of its models

    async def models(self) -> list[str]:
        """Return the names of the models that workers have, sorted. Raises ServeError."""
        await self._post("/refresh_all_workers")
        return sorted(str(one) for one in (await self._list())["models"])

    async def _list(self) -> Mapping[str, Any]:
        """Return what the controller tells of its models. Raises ServeError."""
        found = await self._post("/list_models")
        if not isinstance(found, dict) or not isinstance(found.get("models"), list):
            raise self._no_controller("it lists no models")
        self._told = found
        return found

    def template_of(self, model: str) -> Conversation:
        """Return the template that a model's worker tells, else the one that its name suggests."""
        return conv_templates[template_for(model, self._told)]

    async def answer(self, question: Question) -> AsyncGenerator[Progress, None]:
        """Yield the answer as it grows. Raises ServeError."""
        told = await asyncio.to_thread(self._discovery.told, question.model, await self._list())
        asked = _asked(question, way_to_ask(question.model, told))
        start = len(asked.get("prompt", ""))
        params = {
            "model": question.model,
            **asked,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "max_new_tokens": question.max_new_tokens,
            "images": await asyncio.to_thread(lambda: [encode_png(one) for one in question.images]),
        }
        async with aclosing(self._frames(params)) as found:
            async for one in found:
                if one["error_code"] or "error" in one:
                    raise _failure(one)
                yield Progress(one["text"][start:].strip())

    async def _frames(self, params: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        begun = False
        timeout = httpx2.Timeout(frames.STREAM_TIMEOUT_S, connect=frames.CONNECT_TIMEOUT_S)
        try:
            # to the address that it was given and to no other
            async with httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False) as client:
                headers = frames.headers(self._api_key)
                async for one in stream_frames(client, self.address, params, headers=headers):
                    begun = True
                    yield one
        except httpx2.HTTPStatusError as error:
            raise _refusal(error.response) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, frames.FrameError) as error:
            if not begun:
                raise self._no_controller(type(error).__name__) from error
            message = "the connection to the server broke off before the answer was whole; ask again"
            raise ServeError(502, message, code="connection_lost", retry_after_s=1) from error

    async def _post(self, path: str) -> Any:
        try:
            return await asyncio.to_thread(frames.post, self.address + path, None, api_key=self._api_key)
        except httpx2.HTTPStatusError as error:
            raise _refusal(error.response) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise self._no_controller(type(error).__name__) from error

    def _no_controller(self, reason: str) -> ServeError:
        message = f"the controller at {self.address} does not answer ({reason}); is it running?"
        return ServeError(503, message, code="no_controller", retry_after_s=5)


def _asked(question: Question, way: Way) -> dict[str, Any]:
    """Return the fields that tell a worker what to answer. Raises ServeError."""
    template = conv_templates[way.template]
    conversation = question.conversation(template)
    if way.by_messages:
        return {MESSAGES: messages_of(conversation, template)}
    try:
        stop = next(iter(template_of(conversation).stop_strings()), None)
        return {"prompt": conversation.get_prompt(), "stop": stop}
    except UserError as error:
        raise bad_request(str(error), param="model") from error


def _refusal(reply: httpx2.Response) -> ServeError:
    """Return the error that a controller answered with."""
    try:
        told = reply.json()["error"]
        return ServeError(reply.status_code, str(told["message"]), code=str(told["code"]))
    except (ValueError, KeyError, TypeError):
        message = f"the controller answered with HTTP status {reply.status_code}"
        return ServeError(502, message, code="controller_error")


def _failure(frame: Mapping[str, Any]) -> ServeError:
    """Return the error of a frame; programs of the reference send a text alone."""
    told = frame.get("error")
    if isinstance(told, Mapping) and told.get("message"):
        return ServeError(502, str(told["message"]), code=str(told.get("code") or "worker_error"))
    return ServeError(502, str(frame["text"]), code=f"worker_error_{frame['error_code']}")
