"""The key of a server, where it may listen, and under which names it answers."""

from __future__ import annotations

import hmac

import pytest
from asgi import call, echo, scope_of

from llava.serve.auth import ApiKey, LocalHosts, check_binding, is_loopback, read_api_key
from llava.utils import UserError

KEY = "correct-horse-battery"


@pytest.mark.parametrize(
    "header", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} "], ids=["plain", "lower", "blanks"]
)
def test_the_key_opens(header: str) -> None:
    assert call(ApiKey(echo, api_key=KEY), scope_of(headers=[("authorization", header)])).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", KEY)],
        [("authorization", f"Basic {KEY}")],
        [("authorization", f"Bearer {KEY}x")],
        [("authorization", f"Bearer {KEY[:-1]}")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer \xff\xfe")],
        [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")],
        [("x-api-key", KEY)],
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/openapi.json", "/docs", "/nowhere"])
def test_nothing_opens_without_the_key(headers: list[tuple[str, str]], path: str) -> None:
    reply = call(ApiKey(echo, api_key=KEY), scope_of(path, headers))
    assert reply.status == 401
    assert reply.error["code"] == "invalid_api_key" and reply.error["type"] == "authentication_error"
    assert reply.headers["www-authenticate"] == "Bearer" and reply.headers["x-should-retry"] == "false"
    assert KEY not in reply.body.decode()


def test_a_stranger_sends_no_body() -> None:
    assert call(ApiKey(echo, api_key=KEY), scope_of(), chunks=[]).status == 401  # receive would wait for ever


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in ("", "short", KEY, "x" * 5000):
        call(ApiKey(echo, api_key=KEY), scope_of(headers=[("authorization", f"Bearer {given}")]))
    assert compared == [(32, 32)] * 4


def test_the_key_comes_from_the_flag_or_the_environment() -> None:
    assert read_api_key(None, {}) is None
    assert read_api_key(None, {"LLAVA_API_KEY": ""}) is None
    assert read_api_key(None, {"LLAVA_API_KEY": KEY}) == KEY
    assert read_api_key("another-key", {"LLAVA_API_KEY": KEY}) == "another-key"


@pytest.mark.parametrize(
    "key", ["", "short", "with a blank in it", "schlüssel-schlüssel", "x" * 513, "line\nline\n"]
)
def test_a_bad_key_is_refused_at_the_start_and_not_shown(key: str) -> None:
    with pytest.raises(UserError, match="expected 8 to 512") as refused:
        read_api_key(key, {})
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_binding(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "", "localhost.example.org"])
def test_another_address_needs_a_key(host: str) -> None:
    check_binding(host, KEY)
    with pytest.raises(UserError, match="LLAVA_API_KEY"):
        check_binding(host, None)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "localhost:8000", "[::1]:8000", "127.0.0.1"])
def test_a_server_without_a_key_answers_under_local_names(host: str) -> None:
    assert call(LocalHosts(echo), scope_of(headers=[("host", host)])).status == 200


@pytest.mark.parametrize(
    "hosts", [["evil.example.org"], ["evil.example.org:8000"], [], ["localhost", "evil"], ["::1:1:1"]]
)
def test_a_web_page_that_rebinds_its_name_reads_nothing(hosts: list[str]) -> None:
    reply = call(LocalHosts(echo), scope_of(headers=[("host", one) for one in hosts]))
    assert reply.status == 403 and reply.error["code"] == "foreign_host"


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        ("http://localhost:7860", True),
        ("http://127.0.0.1:8000", True),
        ("https://[::1]:8000", True),
        ("https://evil.example.org", False),
        ("http://localhost.evil.example.org", False),
        ("http://evil.example.org:8000", False),
        ("null", False),
        ("", False),
        ("file://localhost", False),
        ("http://localhost@evil.example.org", False),
    ],
)
def test_a_page_of_another_site_asks_nothing(origin: str, passes: bool) -> None:
    reply = call(LocalHosts(echo), scope_of(headers=[("host", "localhost:8000"), ("origin", origin)]))
    assert reply.status == (200 if passes else 403)
    assert passes or reply.error["code"] == "foreign_origin"
