"""The sockets that servers listen at, and the addresses that they are reached by."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from llava.utils import UserError, shortened


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises UserError."""
    name = host.removeprefix("[").removesuffix("]")
    try:
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((name, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(
            f"cannot listen on --host {host} --port {port}: {reason}; give another one, or end the program "
            "that uses it"
        ) from error


def url_of(listening: socket.socket) -> str:
    """Return the address at which a socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_address(flag: str, address: str) -> None:
    """Raise UserError unless a flag's address is one that a request can be sent to."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        usable = False
    if not usable:
        raise UserError(f"{flag} is {shortened(address)!r}; expected http://host:port")
