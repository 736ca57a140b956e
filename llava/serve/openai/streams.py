"""Server-sent events: how they are written, and a response that ends its requests when it ends itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.responses import StreamingResponse

from llava.inference.engine import Ticket, Waiting
from llava.serve.errors import Message, Receive, Scope, Send, ServeError, set_last_words
from llava.serve.openai.answering import cancel

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def event(content: Mapping[str, Any], name: str | None = None) -> bytes:
    """Write one event; JSON escapes line breaks, so that no answer can end its event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content)}\n\n".encode()


def comment(waiting: Waiting) -> bytes:
    """Write a line that clients ignore, and that keeps the connection alive."""
    words = f"waiting, place {waiting.place}" if waiting.place else "reading the prompt"
    return f": {words}\n\n".encode()


class EventStream(StreamingResponse):
    """A stream of events; however it ends, also before its first event, its tickets are cancelled."""

    write_timeout_s = 60.0  # for a client that reads nothing

    def __init__(self, events: AsyncIterator[bytes], tickets: Sequence[Ticket]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_with_errors(events), media_type="text/event-stream", headers=headers)
        self.tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client is gone."""

        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), self.write_timeout_s)

        set_last_words(scope, lambda error: event(error.body))
        try:
            await super().__call__(scope, receive, send_in_time)
        except (asyncio.TimeoutError, TimeoutError):
            logger.warning("a client did not read its stream for %g s; it was ended", self.write_timeout_s)
        finally:
            cancel(self.tickets)


async def _with_errors(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass events on; a failure becomes the last of them, in the form that clients raise."""
    try:
        async for one in events:
            yield one
    except ServeError as error:
        yield event(error.body)
