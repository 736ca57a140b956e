"""Which addresses a controller connects to: those that match its allow-list, in one plain form."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from llava.serve.auth import is_loopback
from llava.utils import UserError

_NAME = re.compile(r"(?!.*\.\.)[a-z0-9]([a-z0-9\-_.]*[a-z0-9])?")
# The system's resolver takes 127.1 and 0x7f000001 for addresses, other programs take them for names.
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_ADDRESS = re.compile(r"[a-z0-9\-._:/\[\]]+", re.I)
MAX_LENGTH = 300

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class WorkerAddressError(UserError):
    """An address that is malformed or not allowed."""


class WorkerAddresses:
    """The allow-list of a controller.

    allowed: host names, "*.example.org" for all below one, IP addresses, or networks (10.0.0.0/8), which hold
    for addresses that are written as numbers. Without any, workers have to be on this machine. A name is
    resolved by the system when the controller connects: list names only whose owner is trusted.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._names: list[str] = []
        self._networks: list[Network] = []
        for entry in allowed:
            self._add(entry.strip().lower())
        self.allowed = tuple(allowed)

    def _add(self, entry: str) -> None:
        try:
            self._networks.append(ipaddress.ip_network(entry))
        except ValueError as error:
            if not _NAME.fullmatch(entry.removeprefix("*.")) or _is_number(entry):
                raise UserError(
                    f"--allow-worker is {entry!r}; expected a host name, *.example.org, an IP address or a "
                    "network such as 10.0.0.0/8, without http:// and port"
                ) from error
            self._names.append(entry)

    def check(self, address: str) -> str:
        """Return an address as http(s)://host[:port]. Raises WorkerAddressError."""
        scheme, host, port = _take_apart(address)
        if not self._allows(host):
            listed = ", ".join(self.allowed) or "this machine only"
            raise WorkerAddressError(
                f"a worker at {host!r} is not allowed here (allowed: {listed}); start the controller with "
                "--allow-worker and the worker's host"
            )
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}" if port is None else f"{scheme}://{shown}:{port}"

    def _allows(self, host: str) -> bool:
        if is_loopback(host):
            return not self.allowed or self._lists(host)
        return self._lists(host)

    def _lists(self, host: str) -> bool:
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            return any(
                host == one or (one.startswith("*.") and host.endswith(one[1:])) for one in self._names
            ) or (host == "localhost" and any(one.overlaps(_LOOPBACK) for one in self._of_version(4)))
        return any(ip in one for one in self._of_version(ip.version))

    def _of_version(self, version: int) -> list[Network]:
        return [one for one in self._networks if one.version == version]


_LOOPBACK = ipaddress.IPv4Network("127.0.0.1/32")


def _take_apart(address: str) -> tuple[str, str, int | None]:
    """Return scheme, host in lower case and port of an address. Raises WorkerAddressError."""
    wrong = WorkerAddressError(
        f"the worker's address is {address[:MAX_LENGTH]!r}; expected http://host:port with nothing behind it"
    )
    if len(address) > MAX_LENGTH or not _ADDRESS.fullmatch(address):
        raise wrong
    try:
        parts = urlsplit(address)
        port, host = parts.port, (parts.hostname or "").lower()
        if ":" in host:
            host = str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in ("http", "https") or parts.path not in ("", "/"):
        raise wrong
    if ":" not in host and (not _NAME.fullmatch(host) or (_is_number(host) and not _is_ipv4(host))):
        raise wrong
    return parts.scheme, host, port


def _is_number(host: str) -> bool:
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
