"""Who may talk to a server: this machine alone, or whoever has the key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping

from llava.serve.errors import App, Receive, Scope, Send, ServeError, header_values, send_error
from llava.utils import UserError

KEY_VARIABLE = "LLAVA_API_KEY"
_KEY = re.compile(r"[!-~]{8,512}")  # visible ASCII: what a header carries unchanged


def read_api_key(flag: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key of --api-key or LLAVA_API_KEY, None when neither is set. Raises UserError."""
    key = flag if flag is not None else environment.get(KEY_VARIABLE) or None
    if key is not None and not _KEY.fullmatch(key):
        raise UserError(
            f"the key of {'--api-key' if flag is not None else KEY_VARIABLE} has {len(key)} characters, or "
            "blanks or letters outside ASCII; expected 8 to 512 visible ASCII characters, for example those "
            'that `python -c "import secrets; print(secrets.token_urlsafe(32))"` prints'
        )
    return key


def check_binding(host: str, api_key: str | None) -> None:
    """Raise UserError for a server that others could reach without a key."""
    if api_key is None and not is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines in, which needs a key: set {KEY_VARIABLE} (or --api-key), or "
            "leave --host out to serve this machine only"
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address stands for this machine and nothing else."""
    name = host.lower().removeprefix("[").removesuffix("]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class ApiKey:
    """Lets requests pass that carry the key as `Authorization: Bearer KEY`; all others get 401.

    It reads headers only, so that a stranger's body is never taken in.
    """

    def __init__(self, app: App, *, api_key: str) -> None:
        self.app = app
        self._digest = _digest(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan" or self._knows(scope):
            return await self.app(scope, receive, send)
        await self.refuse(send)

    async def refuse(self, send: Send) -> None:
        """Answer a request without the key."""
        message = "the API key is missing or wrong; send it as the header `Authorization: Bearer KEY`"
        await send_error(send, ServeError(401, message, code="invalid_api_key"), close=True)

    def given(self, scope: Scope) -> str:
        """Return the key that a request brings, "" for none."""
        values = header_values(scope, "authorization")
        scheme, _, key = (values[0] if len(values) == 1 else "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""

    def _knows(self, scope: Scope) -> bool:
        # digests are of one length: the time of the comparison tells nothing of the key, nor of its length
        return hmac.compare_digest(_digest(self.given(scope)), self._digest)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class LocalHosts:
    """Refuses requests of foreign web pages (403), where no key protects a server.

    A page in a browser on this machine may send requests to 127.0.0.1, which name the page's site as Origin;
    it may also point its own name at 127.0.0.1 and read the answers (DNS rebinding): it cannot change the
    Host header, which then is that name. Programs send no Origin.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not all(self._is_local_origin(one) for one in header_values(scope, "origin")):
            message = "this server has no key and answers no web page of another site; start it with a key"
            return await send_error(send, ServeError(403, message, code="foreign_origin"), close=True)
        if self._is_local(header_values(scope, "host")):
            return await self.app(scope, receive, send)
        message = (
            "this server has no key and answers requests for 127.0.0.1 and localhost only; to reach it by "
            "another name start it with a key"
        )
        await send_error(send, ServeError(403, message, code="foreign_host"), close=True)

    @staticmethod
    def _is_local(hosts: list[str]) -> bool:
        if len(hosts) != 1:
            return False
        name = re.sub(r":\d{1,5}$", "", hosts[0])
        return is_loopback(name)

    @classmethod
    def _is_local_origin(cls, origin: str) -> bool:
        scheme, _, host = origin.partition("://")  # "null" of a sandboxed page has no host
        return scheme in ("http", "https") and cls._is_local([host])
