"""What stands in front of every server's application."""

from __future__ import annotations

from collections.abc import Callable

from llava.serve.auth import ApiKey, LocalHosts
from llava.serve.errors import App, Scope
from llava.serve.limits import BodyLimit, HeaderLimit, Limits, RateLimit, RequestIds
from llava.serve.logs import AccessLog


def guard(
    app: App,
    *,
    api_key: str | None,
    limits: Limits | None = None,
    on_end: Callable[[Scope, int, float], None] | None = None,
) -> App:
    """Return an application that only lets through what an operator expects.

    From the outside: an id and a log line for each request, the size of its headers, its key (without one:
    only this machine's names), its client's rate, the size and the time of its body.
    """
    limits = limits or Limits()
    guarded: App = BodyLimit(app, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
    if limits.per_minute is not None:
        guarded = RateLimit(guarded, per_minute=limits.per_minute, free=("/health", "/receive_heart_beat"))
    guarded = LocalHosts(guarded) if api_key is None else ApiKey(guarded, api_key=api_key)
    guarded = HeaderLimit(guarded, max_bytes=limits.max_header_bytes)
    return RequestIds(AccessLog(guarded, on_end=on_end))
