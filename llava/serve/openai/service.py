"""What all endpoints share: the engine, the settings, and the way from a request to its answer."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava.inference.engine import AnyEngine, Event, Ticket
from llava.serve.openai.answering import FinishedAnswer, Job, collect, follow, submit, unless_gone
from llava.serve.openai.metrics import ServerMetrics
from llava.serve.openai.models import Models, Served, check_fields
from llava.serve.openai.schema import ChatRequest, CompletionRequest, ResponseRequest
from llava.serve.openai.settings import ClientSettings
from llava.serve.openai.streams import EventStream

Events = AsyncIterator[tuple[int, Event | None]]


@dataclass(frozen=True)
class Service:
    """The models of a server with its settings, and the numbers that are kept of it."""

    models: Models
    settings: ClientSettings
    metrics: ServerMetrics

    async def find(self, asked: ChatRequest | CompletionRequest | ResponseRequest) -> Served:
        """Return the model of a request. Raises ServeError: 404, or 400 for what it cannot be asked."""
        served = await self.models.find(asked.model)
        check_fields(asked, served.model)
        return served

    async def answer(
        self,
        request: Request,
        engine: AnyEngine,
        job: Job,
        *,
        response: Callable[[list[Ticket], list[FinishedAnswer]], dict[str, Any]],
        stream: Callable[[list[Ticket], Events], AsyncIterator[bytes]] | None,
    ) -> Response:
        """Run a job and answer with `response`, or with the events of `stream` if it is given.

        A client that goes away ends its answers. Raises ServeError.
        """
        tickets = await unless_gone(request.receive, submit(engine, job))
        if stream is not None:
            return EventStream(self._counted(tickets, stream), tickets)
        answers = await unless_gone(request.receive, collect(tickets))
        self.metrics.answered(tickets)
        return JSONResponse(response(tickets, answers))

    async def _counted(
        self, tickets: list[Ticket], stream: Callable[[list[Ticket], Events], AsyncIterator[bytes]]
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream, and count its answers when it ends."""
        try:
            async with aclosing(follow(tickets)) as events:
                async for one in stream(tickets, events):
                    yield one
        finally:
            self.metrics.answered(tickets)


def new_id(prefix: str) -> str:
    """Return an id for an answer, as OpenAI's look."""
    return f"{prefix}{uuid.uuid4().hex}"
