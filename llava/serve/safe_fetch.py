"""Images that clients name: data: URLs, and addresses of the public internet where the operator allows them.

A server that fetches what a stranger names can be made to read its own network. So addresses are off unless
they are allowed; then a name is resolved once, every address it stands for has to be public, the connection
goes to the address that was checked, and a redirect is checked like the first address. Paths of this machine
are never opened. Everything has a limit: time, bytes, pixels, redirects.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

import h11
from PIL import Image

from llava.images import ImageError, load_image_from_bytes
from llava.utils import UserError

# The kinds of files that are decoded; Pillow reads dozens more, which nobody sends and few have tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
# RFC 3986 has no other characters in an address; a backslash or a blank is read differently by each parser.
_ADDRESS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9\-_.]*[A-Za-z0-9])?\.?")
# 127.1, 2130706433, 0x7f000001 and 0177.0.0.1 are numbers to the system's resolver and names to others.
_NUMBER = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)\.?")
_DATA = re.compile(r"data:(image/[a-z0-9.+\-]{1,40})?(;[a-z0-9\-]{1,20}=[A-Za-z0-9\-.]{1,40})*;base64,", re.I)
_MAX_ADDRESS = 4096  # characters


class RemoteImageError(ImageError):
    """An image of a request that may not or cannot be had; the message is fit for the client."""


@dataclass(frozen=True)
class FetchPolicy:
    """What images of clients may be: from where, and how large.

    remote: whether http(s) addresses are fetched at all. hosts: only these, "*.example.org" for all below
    one; none means every public host.
    """

    remote: bool = False
    hosts: tuple[str, ...] = ()
    timeout_s: float = 10.0
    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_redirects: int = 3

    def __post_init__(self) -> None:
        for host in self.hosts:
            if not _HOST.fullmatch(host.removeprefix("*.")):
                raise UserError(
                    f"--allow-remote-images names {host!r}; expected host names such as images.example.org "
                    "or *.example.org, without http://"
                )

    def lists(self, host: str) -> bool:
        """Tell whether a host (in lower case) is on the list, or there is none."""
        for entry in self.hosts:
            entry = entry.lower().rstrip(".")
            if host == entry or (entry.startswith("*.") and host.endswith(entry[1:])):
                return True
        return not self.hosts


async def load_client_image(url: str, policy: FetchPolicy, *, name: str = "image") -> Image.Image:
    """Return the RGB image of a data: URL or, where allowed, of an http(s) address.

    name: what messages call it. Decoding runs in a thread. Raises RemoteImageError (ImageError).
    """
    scheme = url[:12].partition(":")[0].lower() if ":" in url[:12] else ""
    if scheme == "data":
        data = decode_data_url(url, policy, name=name)
    elif scheme in _PORTS:
        if not policy.remote:
            raise RemoteImageError(
                f"{name} is an http(s) address, and this server does not fetch images; send it as a data: "
                "URL (data:image/png;base64,...), or start the server with --allow-remote-images"
            )
        data = await fetch(url, policy, name=name)
    else:
        raise RemoteImageError(
            f"{name} is neither a data: URL (data:image/png;base64,...) nor an http(s) address; files of the "
            "server are never read"
        )
    return await asyncio.to_thread(decode_image, data, policy, name=name)


def decode_image(data: bytes, policy: FetchPolicy, *, name: str = "image") -> Image.Image:
    """Return the RGB image of a file's bytes. Raises ImageError."""
    told = name.removeprefix("the image of ")  # a message about what an image holds says "the image" itself
    return load_image_from_bytes(data, told, max_pixels=policy.max_pixels, formats=FORMATS)


def decode_data_url(url: str, policy: FetchPolicy, *, name: str = "image") -> bytes:
    """Return the bytes of a data: URL. Raises RemoteImageError."""
    head = _DATA.match(url, 0, 300)
    if head is None:
        raise RemoteImageError(f"{name} is no data: URL of an image; expected data:image/png;base64,...")
    return decode_base64(url[head.end() :], policy, name=name)


def decode_base64(text: str, policy: FetchPolicy, *, name: str = "image") -> bytes:
    """Return the bytes of a base64 text. Raises RemoteImageError."""
    if len(text) * 3 // 4 > policy.max_bytes + 3:
        raise RemoteImageError(f"{name} is larger than {policy.max_bytes:,} bytes; send a smaller file")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteImageError(f"{name} is not valid base64 text: {error}") from error


# ---- addresses ----


@dataclass(frozen=True)
class Target:
    """An address that was taken apart and found harmless in form: what to ask whom."""

    url: str
    scheme: str
    host: str  # in lower case, without brackets
    port: int
    path: str


def read_address(url: str, policy: FetchPolicy, *, name: str = "image") -> Target:
    """Take an http(s) address apart. Raises RemoteImageError for every form that parsers disagree about."""
    if len(url) > _MAX_ADDRESS or not _ADDRESS.fullmatch(url):
        raise RemoteImageError(
            f"the address of {name} is too long or has characters that no address has (blanks, backslashes, "
            "letters outside ASCII); percent-encode them"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RemoteImageError(f"the address of {name} is malformed: {error}") from error
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise RemoteImageError(f"the address of {name} is not http:// or https://")
    if "@" in parts.netloc:
        raise RemoteImageError(f"the address of {name} holds a user name; leave it out")
    host = _host_of(parts, name)
    if not policy.lists(host):
        raise RemoteImageError(f"{name} lies on a host that this server does not fetch images from")
    path = parts.path or "/"
    path = f"{path}?{parts.query}" if parts.query else path
    return Target(url, scheme, host, port or _PORTS[scheme], path)


def _host_of(parts: SplitResult, name: str) -> str:
    """Return the host of an address in lower case, after a look at its form."""
    host = (parts.hostname or "").lower()
    if ":" in host:  # an IPv6 address; a zone (%eth0) is none of the public internet
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise RemoteImageError(f"the address of {name} has a malformed IPv6 address") from error
    if not _HOST.fullmatch(host) or ".." in host:
        raise RemoteImageError(f"the address of {name} has no host, or one that is no host name")
    host = host.rstrip(".")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise RemoteImageError(
                f"the address of {name} has a number as its host; write IPv4 as four decimal numbers"
            ) from error
    return host


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public internet; what is embedded in IPv6 counts as IPv4."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        # 6to4, Teredo and NAT64 lead to an IPv4 address that a gateway chooses
        if ip.sixtofour is not None or ip.teredo is not None or ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


async def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host; the one place that asks for them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


# ---- fetching ----


async def fetch(url: str, policy: FetchPolicy, *, name: str = "image") -> bytes:
    """Return what lies at an http(s) address, within the limits of the policy. Raises RemoteImageError."""
    try:
        return await asyncio.wait_for(_follow(url, policy, name), policy.timeout_s)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise RemoteImageError(f"{name} did not arrive within {policy.timeout_s:g} seconds") from error
    except (OSError, h11.RemoteProtocolError) as error:  # ssl's errors are OSErrors
        raise RemoteImageError(f"{name} could not be fetched ({type(error).__name__})") from error


async def _follow(url: str, policy: FetchPolicy, name: str) -> bytes:
    """Fetch an address; each redirect is a new address, checked as the first one."""
    target = read_address(url, policy, name=name)
    for _ in range(policy.max_redirects + 1):
        addresses = await resolve(target.host, target.port)
        if not addresses or not all(is_public(one) for one in addresses):
            raise RemoteImageError(f"{name} lies on a host that is not on the public internet")
        answer = await _get(target, addresses, policy, name)
        if isinstance(answer, bytes):
            return answer
        following = read_address(urljoin(target.url, answer.location), policy, name=name)
        if target.scheme == "https" and following.scheme != "https":
            raise RemoteImageError(f"{name} is redirected from https to http; give the address it leads to")
        target = following
    raise RemoteImageError(f"{name} is redirected more than {policy.max_redirects} times")


@dataclass(frozen=True)
class _Redirect:
    location: str


async def _get(target: Target, addresses: list[str], policy: FetchPolicy, name: str) -> bytes | _Redirect:
    """Ask one of the checked addresses for a target; the name is only used for TLS and the Host header."""
    reader, writer = await _connect(target, addresses)
    try:
        host = f"[{target.host}]" if ":" in target.host else target.host
        default = target.port == _PORTS[target.scheme]
        request = h11.Request(
            method="GET",
            target=target.path,
            headers=[
                ("Host", host if default else f"{host}:{target.port}"),
                ("User-Agent", "llava"),
                ("Accept", "image/*"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
        )
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=16 * 1024)
        writer.write(connection.send(request) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        return await _read(connection, reader, policy, name)
    finally:
        writer.transport.abort()  # not close(): that would wait for the other side


async def _connect(target: Target, addresses: list[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first of the checked addresses that answers."""
    context = ssl.create_default_context() if target.scheme == "https" else None
    failure: OSError = OSError("no address")
    for address in addresses[:4]:
        try:
            return await asyncio.open_connection(
                address, target.port, ssl=context, server_hostname=target.host if context else None
            )
        except OSError as error:
            failure = error
    raise failure


async def _read(
    connection: h11.Connection, reader: asyncio.StreamReader, policy: FetchPolicy, name: str
) -> bytes | _Redirect:
    """Read a response: its body, or where it leads."""
    data = bytearray()
    too_large = RemoteImageError(f"{name} is larger than {policy.max_bytes:,} bytes; send a smaller file")
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in event.headers}
            if event.status_code in _REDIRECTS and "location" in headers:
                return _Redirect(headers["location"])
            if event.status_code != 200:
                raise RemoteImageError(f"{name} could not be fetched: HTTP status {event.status_code}")
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise RemoteImageError(f"{name} comes compressed, which was not asked for")
            if int(headers.get("content-length", "0")) > policy.max_bytes:  # h11 checked that it is a number
                raise too_large
        elif isinstance(event, h11.Data):
            data += event.data
            if len(data) > policy.max_bytes:
                raise too_large
        elif isinstance(event, h11.EndOfMessage):
            return bytes(data)
        elif isinstance(event, h11.ConnectionClosed):
            raise RemoteImageError(f"{name} could not be fetched: the connection was closed")
