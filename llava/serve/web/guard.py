"""What stands in front of a page beside the guards of all servers: a browser's key, whose pages may ask."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import urlsplit

from llava.serve.auth import ApiKey
from llava.serve.errors import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    ServeError,
    header_values,
    send_error,
    send_json,
)


class BrowserKey(ApiKey):
    """Lets requests pass that carry the key as a program sends it, or as the password of HTTP Basic.

    A browser asks its user for name and password then; any name will do.
    """

    async def refuse(self, send: Send) -> None:
        """Answer a request without the key."""
        message = "the API key is missing or wrong; give it as the password, with any user name"
        error = ServeError(401, message, code="invalid_api_key")
        challenge = 'Basic realm="LLaVA", charset="UTF-8"'
        headers = {**error.headers, "www-authenticate": challenge}
        await send_json(send, 401, error.body, headers, close=True)

    def given(self, scope: Scope) -> str:
        """Return the key that a request brings, "" for none."""
        values = header_values(scope, "authorization")
        scheme, _, content = (values[0] if len(values) == 1 else "").partition(" ")
        if scheme.lower() != "basic":
            return super().given(scope)
        try:
            return base64.b64decode(content.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""


class PageHeaders:
    """Tells browsers to load nothing from elsewhere, whatever a model's answer names.

    Addresses in an answer could otherwise carry a dialog to whoever made the model say them. embed: other
    sites may show the page in a frame.
    """

    def __init__(self, app: App, *, embed: bool = False) -> None:
        self.app = app
        sources = "'self' data: blob: 'unsafe-inline' 'unsafe-eval'"  # gradio's page has scripts in it
        frames = "*" if embed else "'self'"
        self._headers = [
            (
                b"content-security-policy",
                f"default-src {sources}; object-src 'none'; frame-ancestors {frames}".encode(),
            ),
            (b"referrer-policy", b"same-origin"),
            (b"x-content-type-options", b"nosniff"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class SameOrigin:
    """Refuses requests that a page of another site sends through a user's browser (403).

    A browser sends a key (and on this machine needs none) whoever asks; it also says who asks, in headers
    that pages cannot change. Programs send none of them, and a link from elsewhere may open the page.
    """

    def __init__(self, app: App, *, embed: bool = False) -> None:
        self.app = app
        # where a page of another site may show this one
        self._opened_as = ("document", "iframe") if embed else ("document",)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or self._is_own(scope):
            return await self.app(scope, receive, send)
        message = "a page of another site may not use this server"
        await send_error(send, ServeError(403, message, code="foreign_origin"), close=True)

    def _is_own(self, scope: Scope) -> bool:
        site, mode, kind = (
            next(iter(header_values(scope, f"sec-fetch-{one}")), "") for one in ("site", "mode", "dest")
        )
        if scope["method"] == "GET" and mode == "navigate" and kind in self._opened_as:
            return True
        if site not in ("", "same-origin", "none"):
            return False
        origins, hosts = header_values(scope, "origin"), header_values(scope, "host")
        return not origins or [urlsplit(one).netloc for one in origins] == hosts
