"""Answers of the models that a controller knows, over the reference's protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx2

from llava.conversation import Conversation, choose_template, conv_templates, template_of
from llava.serve.errors import ServeError
from llava.serve.web.asking import Progress, Question
from llava.serve.workers import frames


class ControllerBackend:
    """Asks a controller, which sends each request on to a worker."""

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        self.address = address.rstrip("/")
        self._api_key = api_key

    async def models(self) -> list[str]:
        """Return the names of the models that workers have, sorted. Raises ServeError."""
        await self._post("/refresh_all_workers")
        found = await self._post("/list_models")
        names = found.get("models") if isinstance(found, dict) else None
        if not isinstance(names, list):
            raise self._no_controller("it lists no models")
        return sorted(str(one) for one in names)

    def template_of(self, model: str) -> Conversation:
        """Return the template that a model's name suggests."""
        key, _ = choose_template(model)
        return conv_templates[key]

    async def answer(self, question: Question) -> AsyncGenerator[Progress, None]:
        """Yield the answer as it grows. Raises ServeError."""
        conversation = question.conversation(self.template_of(question.model))
        prompt = conversation.get_prompt()
        params = {
            "model": question.model,
            "prompt": prompt,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "max_new_tokens": question.max_new_tokens,
            "stop": next(iter(template_of(conversation).stop_strings()), None),
            "images": [conversation.process_image(one, "Default") for one in question.images],
        }
        async with aclosing(self._frames(params)) as found:
            async for one in found:
                if one["error_code"] or "error" in one:
                    raise _failure(one)
                yield Progress(one["text"][len(prompt) :].strip())

    async def _frames(self, params: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        begun = False
        try:
            async with (
                self._client(frames.STREAM_TIMEOUT_S) as client,
                client.stream("POST", f"{self.address}/worker_generate_stream", json=dict(params)) as reply,
            ):
                if reply.status_code != 200:
                    await reply.aread()
                    raise self._refusal(reply)
                async for one in _read(reply.aiter_raw()):
                    begun = True
                    yield one
        except (httpx2.HTTPError, httpx2.InvalidURL, frames.FrameError) as error:
            if not begun:
                raise self._no_controller(type(error).__name__) from error
            message = "the connection to the server broke off before the answer was whole; ask again"
            raise ServeError(502, message, code="connection_lost", retry_after_s=1) from error

    async def _post(self, path: str) -> Any:
        try:
            async with self._client(frames.STREAM_TIMEOUT_S) as client:
                reply = await client.post(self.address + path)
                if reply.status_code != 200:
                    raise self._refusal(reply)
                return reply.json()
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise self._no_controller(type(error).__name__) from error

    def _client(self, read_timeout_s: float) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(**frames.client_settings(self._api_key, read_timeout_s))

    def _no_controller(self, reason: str) -> ServeError:
        message = f"the controller at {self.address} does not answer ({reason}); is it running?"
        return ServeError(503, message, code="no_controller", retry_after_s=5)

    def _refusal(self, reply: httpx2.Response) -> ServeError:
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


async def _read(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the frames of a stream. Raises FrameError."""
    reader = frames.FrameReader()
    async for chunk in chunks:
        for one in reader.put(chunk):
            yield one
    reader.end()
