"""What stands in front of every server's application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava.serve.auth import ApiKey, LocalHosts
from llava.serve.errors import App, Scope, ServeError, internal_error
from llava.serve.limits import BodyLimit, HeaderLimit, Limits, RateLimit, RequestIds
from llava.serve.logs import AccessLog
from llava.serve.web.guard import BrowserKey, PageHeaders, SameOrigin

# What is asked so often, and costs so little, that no rate is kept of it.
FREE_PATHS = ("/health", "/metrics", "/receive_heart_beat")


@dataclass(frozen=True)
class PageGuard:
    """That a server has a page. embed: pages of other sites may show it in a frame."""

    embed: bool = False


def guards(
    *,
    api_key: str | None,
    limits: Limits | None = None,
    on_end: Callable[[Scope, int, float], None] | None = None,
    page: PageGuard | None = None,
) -> list[Middleware]:
    """Return what lets only those requests through that an operator expects, the outermost first.

    An id and a log line for each request, the size of its headers, its key (without one: only this machine's
    names), its client's rate, the size and the time of its body. Strangers are turned away early.
    page: browsers show a page of this server: they send the key in their way, may not be made to ask by pages
    of other sites, and the dozens of files that a page is made of are neither counted nor logged.
    """
    limits = limits or Limits()
    key = ApiKey if page is None else BrowserKey
    found = [
        Middleware(RequestIds),
        Middleware(AccessLog, on_end=on_end, quiet_reads=page is not None),
        Middleware(HeaderLimit, max_bytes=limits.max_header_bytes),
        Middleware(LocalHosts) if api_key is None else Middleware(key, api_key=api_key),
    ]
    if page is not None:
        found += [Middleware(PageHeaders, embed=page.embed), Middleware(SameOrigin, embed=page.embed)]
    if limits.per_minute is not None:
        per_minute, free_reads = limits.per_minute, page is not None
        found.append(Middleware(RateLimit, per_minute=per_minute, free=FREE_PATHS, free_reads=free_reads))
    found.append(Middleware(BodyLimit, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s))
    return found


def guard(
    app: App, *, api_key: str | None, limits: Limits | None = None, page: PageGuard | None = None
) -> App:
    """Return an application behind its guards."""
    for one in reversed(guards(api_key=api_key, limits=limits, page=page)):
        app = one.cls(app, *one.args, **one.kwargs)
    return app


def error_handlers() -> dict[Any, Callable[[Request, Exception], Any]]:
    """Return what gives every failure of a Starlette application the form of OpenAI's errors.

    What nobody expected is answered here, and logged by the server that runs the application.
    """
    return {ServeError: _known, HTTPException: _of_http, Exception: _unexpected}


def respond(error: ServeError, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as a response; headers: that go with its own."""
    return JSONResponse(error.body, error.status, {**error.headers, **(headers or {})})


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return respond(error)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is no such path", 405: "the path does not take this method"}
    code = "not_found" if error.status_code == 404 else "http_error"
    message = words.get(error.status_code, str(error.detail))
    return respond(ServeError(error.status_code, message, code=code), error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    return respond(internal_error())
