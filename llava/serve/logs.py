"""Log lines of a server: one line each whatever a user wrote, without keys and images."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Sequence

from llava.serve.errors import App, Message, Receive, Scope, Send
from llava.serve.limits import request_id
from llava.utils import LOG_FORMAT

logger = logging.getLogger(__name__)

_IMAGE = re.compile(r"data:[a-z]{0,20}/?[a-z0-9.+\-]{0,40}[^,\s]{0,100},[A-Za-z0-9+/=%]{16,}", re.I)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{200,}={0,2}")
_BEARER = re.compile(r"(bearer|basic)\s+[!-~]+", re.I)
MAX_LINE = 8000  # characters


def one_line(text: str) -> str:
    """Return a text with all escaped that ends a line, moves the cursor or turns the writing around."""
    return "".join(_escaped(one) if not one.isprintable() else one for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class SafeFormatter(logging.Formatter):
    """Formats records as one line each, tracebacks included; secrets and images are left out."""

    def __init__(self, secrets: Sequence[str | None] = ()) -> None:
        super().__init__(LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S")
        self.secrets = tuple(one for one in secrets if one)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        text = super().format(record)
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        text = _BEARER.sub(r"\1 [key]", text)
        text = _BASE64.sub("[base64]", _IMAGE.sub("[image]", text))
        text = one_line(text)
        return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}... ({len(text):,} characters)"


def set_up_logging(level: str, *, secrets: Sequence[str | None] = ()) -> None:
    """Send everything that this process logs to stderr in safe lines; call it once, from a program."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter(secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # what this server asks of others: a line beside that of each request, without its id
    logging.getLogger("httpx2").setLevel(logging.NOTSET if level == "debug" else logging.WARNING)


class AccessLog:
    """Logs each request in one line (client, method, route, status, seconds, id) and tells `on_end` of it.

    The path is logged without its query; texts and images of users are never logged. quiet_reads: GETs that
    succeed are logged at level DEBUG only.
    """

    def __init__(
        self,
        app: App,
        *,
        on_end: Callable[[Scope, int, float], None] | None = None,
        quiet_reads: bool = False,
    ) -> None:
        self.app = app
        self.on_end = on_end
        self.quiet_reads = quiet_reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 499  # the client went away before an answer
        began = time.monotonic()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            status = 500
            raise
        finally:
            seconds = time.monotonic() - began
            client = (scope.get("client") or ("-", 0))[0]
            line = "%s %s %s -> %d in %.3f s, %s"
            quiet = self.quiet_reads and scope["method"] == "GET" and status < 400
            logger.log(
                logging.DEBUG if quiet else logging.INFO,
                line,
                client,
                scope["method"],
                one_line(scope["path"][:200]),
                status,
                seconds,
                request_id.get(),
            )
            if self.on_end is not None:
                self.on_end(scope, status, seconds)
