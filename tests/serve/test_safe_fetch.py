"""Images of clients: which addresses are fetched, and that the checked one is connected to; limits."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from llava.images import ImageError
from llava.serve import safe_fetch
from llava.serve.safe_fetch import FetchPolicy, RemoteImageError, is_public, load_client_image, read_address
from llava.utils import UserError

OPEN = FetchPolicy(remote=True, timeout_s=5)


def png(size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def load(url: str, policy: FetchPolicy = OPEN) -> Image.Image:
    return asyncio.run(load_client_image(url, policy))


# ---- addresses ----

# one machine is reached through every one of these: this one, its network, or the cloud's metadata service
CORPUS = [
    "http://127.0.0.1/a.png",
    "http://localhost/a.png",
    "http://127.1/a.png",
    "http://0/a.png",
    "http://0.0.0.0/a.png",
    "http://2130706433/a.png",
    "http://0x7f000001/a.png",
    "http://0x7f.0.0.1/a.png",
    "http://0177.0.0.1/a.png",
    "http://127.0.0.1./a.png",
    "http://[::1]/a.png",
    "http://[::]/a.png",
    "http://[::ffff:127.0.0.1]/a.png",
    "http://[::ffff:7f00:1]/a.png",
    "http://[::127.0.0.1]/a.png",
    "http://[64:ff9b::7f00:1]/a.png",
    "http://[2002:7f00:1::]/a.png",
    "http://[2001:0:7f00:1::]/a.png",
    "http://[fe80::1%25eth0]/a.png",
    "http://[fc00::1]/a.png",
    "http://[fec0::1]/a.png",
    "http://[ff02::1]/a.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "http://10.0.0.1/a.png",
    "http://172.16.0.1/a.png",
    "http://192.168.1.1/a.png",
    "http://224.0.0.1/a.png",
    "http://255.255.255.255/a.png",
    "http://a@127.0.0.1/a.png",
    "http://example.org@127.0.0.1/a.png",
    "http://127.0.0.1\\@example.org/a.png",
    "http://example.org\\@127.0.0.1/a.png",
    "http://example.org:80@127.0.0.1:80/a.png",
    "http://127.0.0.1%2f@example.org/a.png",
    "http://127.0.0.1#@example.org/a.png",
    "http://①②⑦.⓪.⓪.①/a.png",
    "http://127。0。0。1/a.png",
    "http:// 127.0.0.1/a.png",
    "http://127.0.0.1\t/a.png",
    "http://127.0.0.1\r\nHost: example.org/a.png",
    "http:///a.png",
    "http://:80/a.png",
    "http://127.0.0.1:99999/a.png",
    "HTTP://LOCALHOST/a.png",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "ftp://example.org/a.png",
    "gopher://127.0.0.1:70/_",
    "/etc/passwd",
    "a.png",
    "../a.png",
    "",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", CORPUS)
def test_no_address_of_the_corpus_is_connected_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: object, **__: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(asyncio, "open_connection", connect)
    with pytest.raises(RemoteImageError) as refused:
        load(url)
    assert "passwd" not in str(refused.value)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", ["https://images.example.org/a%20b.png?size=2", "http://8.8.8.8:8080/x"])
def test_ordinary_addresses_are_read(url: str) -> None:
    target = read_address(url, OPEN)
    assert url.endswith(target.path) and target.host in url


def test_remote_images_are_off_by_default() -> None:
    with pytest.raises(RemoteImageError, match="--allow-remote-images"):
        load("https://example.org/a.png", FetchPolicy())


@pytest.mark.parametrize(
    "host, listed",
    [
        ("images.example.org", True),
        ("IMAGES.example.org.", True),
        ("a.b.example.net", True),
        ("example.net", False),
        ("evilexample.net", False),
        ("images.example.org.evil.com", False),
        ("example.com", False),
    ],
)
def test_a_list_of_hosts_is_kept_to(host: str, listed: bool) -> None:
    policy = FetchPolicy(remote=True, hosts=("images.example.org", "*.example.net"))
    if listed:
        read_address(f"https://{host}/a.png", policy)
    else:
        with pytest.raises(RemoteImageError, match="does not fetch images from"):
            read_address(f"https://{host}/a.png", policy)


@pytest.mark.parametrize("host", ["https://example.org", "*", "a b", ""])
def test_a_list_that_names_no_hosts_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(UserError, match="host names such as"):
        FetchPolicy(remote=True, hosts=(host,))


# ---- a server of this machine, which the tests declare to be public ----


class Site:
    """A web server on 127.0.0.1 that answers as the test wants, and counts."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.seen: list[tuple[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.seen.append((self.path, self.headers["Host"]))
                site.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str, host: str = "images.example.org") -> str:
        return f"http://{host}:{self.port}{path}"


def answer(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return write


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The site, reached as images.example.org, which resolves to 127.0.0.1; that counts as public here."""
    site = Site()

    async def resolve(host: str, port: int) -> list[str]:
        return {"images.example.org": ["127.0.0.1"], "inside.example.org": ["10.0.0.7"]}[host]

    monkeypatch.setattr(safe_fetch, "resolve", resolve)
    monkeypatch.setattr(safe_fetch, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_an_image_is_fetched_under_its_own_name(site: Site) -> None:
    site.answers["/a.png"] = answer(png())
    assert load(site.url("/a.png")).size == (4, 3)
    assert site.seen == [("/a.png", f"images.example.org:{site.port}")]


def test_a_name_is_resolved_once_and_the_connection_goes_to_the_checked_address(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is public, every later one would be inside."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"], ["169.254.169.254"]])
    connected = []

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    real = asyncio.open_connection

    async def connect(host: str, port: int, **kwargs: object) -> object:
        connected.append(host)
        return await real(host, port, **kwargs)

    monkeypatch.setattr(safe_fetch, "resolve", resolve)
    monkeypatch.setattr(asyncio, "open_connection", connect)
    site.answers["/a.png"] = answer(png())
    load(site.url("/a.png"))
    assert connected == ["127.0.0.1"]
    assert next(answers) == ["169.254.169.254"]  # asked once


def test_a_name_with_one_address_inside_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "192.168.0.1"]

    monkeypatch.setattr(safe_fetch, "resolve", resolve)
    with pytest.raises(RemoteImageError, match="not on the public internet"):
        load(site.url("/a.png"))
    assert not site.seen


def test_redirects_are_followed_and_counted(site: Site) -> None:
    site.answers["/0"] = answer(b"", 302, Location="/1")
    site.answers["/1"] = answer(b"", 307, Location=site.url("/a.png"))
    site.answers["/a.png"] = answer(png())
    assert load(site.url("/0")).size == (4, 3)
    site.answers["/loop"] = answer(b"", 301, Location="/loop")
    with pytest.raises(RemoteImageError, match="more than 3 times"):
        load(site.url("/loop"))


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/a.png",
        "http://[::1]/a.png",
        "http://inside.example.org/a.png",
        "file:///etc/passwd",
        "//127.1/a.png",
        "http://images.example.org@127.0.0.1/a.png",
        "gopher://images.example.org/",
        "",
    ],
)
def test_a_redirect_is_checked_like_the_first_address(
    site: Site, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        if host == "inside.example.org":
            return ["10.0.0.7"]
        return ["127.0.0.1"] if host == "images.example.org" else ["::1"]

    monkeypatch.setattr(safe_fetch, "resolve", resolve)
    site.answers["/a.png"] = answer(b"", 302, Location=location)
    with pytest.raises(RemoteImageError):
        load(site.url("/a.png"))
    assert {path for path, _ in site.seen} == {"/a.png"}


def test_what_is_too_large_is_not_read_to_its_end(site: Site) -> None:
    policy = FetchPolicy(remote=True, max_bytes=1000)
    site.answers["/said"] = answer(b"", Content_Length="1001")
    site.answers["/unsaid"] = answer(bytes(50_000))
    for path in ("/said", "/unsaid"):
        with pytest.raises(RemoteImageError, match="larger than 1,000 bytes"):
            load(site.url(path), policy)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_meets_the_deadline(part: str, site: Site) -> None:
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.end_headers()
        while not stop.wait(0.05):
            try:
                handler.wfile.write(b"H" if part == "head" else b"\0")
            except OSError:
                return

    site.answers["/slow"] = drip
    try:
        with pytest.raises(RemoteImageError, match="within 0.4 seconds"):
            load(site.url("/slow"), FetchPolicy(remote=True, timeout_s=0.4))
    finally:
        stop.set()


@pytest.mark.parametrize(
    "write, words",
    [
        (answer(b"secret text of a page"), "not in an image format"),
        (answer(b"", 404), "HTTP status 404"),
        (answer(b"x", Content_Encoding="gzip"), "compressed"),
        (answer(b"", Content_Length="ten"), "could not be fetched"),
    ],
    ids=["text", "missing", "compressed", "malformed"],
)
def test_other_answers_are_no_images(write: Callable, words: str, site: Site) -> None:
    site.answers["/a"] = write
    with pytest.raises(ImageError, match=words) as refused:
        load(site.url("/a"))
    assert "secret" not in str(refused.value)


def test_a_port_where_nobody_listens_is_a_plain_refusal(site: Site) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RemoteImageError, match="could not be fetched"):
        load(f"http://images.example.org:{port}/a.png")


# ---- data: URLs ----


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/PNG", "image/png;name=a.png", ""])
def test_data_urls_are_decoded(kind: str) -> None:
    image = load(data_url(png(), kind), FetchPolicy())
    assert image.size == (4, 3) and image.mode == "RGB"


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,@@@@",
        "data:image/png;base64,",
        "data:image/png,abc",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:",
        data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        data_url(png()[:40]),
    ],
)
def test_bad_data_urls_are_refused(url: str) -> None:
    with pytest.raises(ImageError):
        load(url, FetchPolicy())


def test_a_large_data_url_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", None)  # calling it would be a TypeError
    with pytest.raises(RemoteImageError, match="larger than 100 bytes"):
        load("data:image/png;base64," + "A" * 200, FetchPolicy(max_bytes=100))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    """A PNG of a few hundred bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(ImageError, match="too large|pixels"):
        load(data_url(bomb), FetchPolicy())
    with pytest.raises(ImageError, match="100 x 100 = 10,000 pixels"):
        load(data_url(png((100, 100))), FetchPolicy(max_pixels=9_999))
