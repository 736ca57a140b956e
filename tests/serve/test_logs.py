"""Log lines: one each, whatever a user wrote; no key and no image in them."""

from __future__ import annotations

import logging

import httpx2
import pytest
from asgi import call, echo, scope_of

from llava.serve.limits import RequestIds
from llava.serve.logs import MAX_LINE, AccessLog, SafeFormatter, set_up_logging

KEY = "correct-horse-battery"


def line_of(text: str, *args: object, exc_info: object = None) -> str:
    record = logging.LogRecord("llava", logging.INFO, __file__, 1, text, args, exc_info)  # type: ignore[arg-type]
    return SafeFormatter((KEY,)).format(record)


@pytest.mark.parametrize(
    "text",
    [
        "a\n2026-01-01 | INFO | forged",
        "a\r\nb",
        "a\x1b[2Jb",
        "a\x00b",
        "a\u2028b",
        "a\u202eb",
        "a\x85b",
        "a\u200bb",
    ],
)
def test_user_text_forges_no_line(text: str) -> None:
    line = line_of("model %s is unknown", text)
    assert line.isprintable() and len(line.splitlines()) == 1
    assert "\\" in line  # it is shown, escaped


def test_ordinary_text_stays() -> None:
    assert line_of("größe %d 数", 5).endswith("| größe 5 数")


@pytest.mark.parametrize(
    "text",
    [
        f"headers: Authorization: Bearer {KEY}",
        f"key={KEY}",
        "Authorization: Bearer sk-another-key",
        "authorization: basic dXNlcjpwYXNz",
    ],
)
def test_no_key_is_logged(text: str) -> None:
    line = line_of(text)
    assert "[key]" in line
    assert not any(one in line for one in (KEY, "sk-another", "dXNlcjpwYXNz"))


@pytest.mark.parametrize("text", ["url data:image/png;base64," + "iVBORw0K" * 10, "raw " + "iVBORw0K" * 50])
def test_no_image_is_logged(text: str) -> None:
    assert "iVBORw0K" not in line_of(text)


def test_a_traceback_is_one_line_too() -> None:
    try:
        raise ValueError(f"bad\n{KEY}")
    except ValueError as error:
        line = line_of("failed", exc_info=(ValueError, error, error.__traceback__))
    assert "Traceback" in line and "\n" not in line and KEY not in line


def test_a_line_has_an_end() -> None:
    assert len(line_of("%s", "ab " * 100_000)) < MAX_LINE + 100


@pytest.mark.parametrize(("level", "is_logged"), [("info", False), ("warning", False), ("debug", True)])
def test_what_a_server_asks_of_others_is_logged_at_debug(
    level: str, is_logged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root, client = logging.getLogger(), logging.getLogger("httpx2")
    before = root.handlers[:], root.level, client.level
    try:
        set_up_logging(level)
        with httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200))) as asking:
            asking.get("http://127.0.0.1/list_models")
        assert ("list_models" in capsys.readouterr().err) is is_logged
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        client.setLevel(before[2])


def test_a_request_is_one_line_without_its_query(caplog: pytest.LogCaptureFixture) -> None:
    ended = []
    app = RequestIds(
        AccessLog(echo, on_end=lambda scope, status, seconds: ended.append((scope["path"], status)))
    )
    with caplog.at_level(logging.INFO, logger="llava.serve.logs"):
        scope = scope_of(
            "/v1/x\n1.2.3.4 GET /forged", [("x-request-id", "id-7")], query_string=b"api_key=secret"
        )
        call(app, scope, chunks=[b"what a user wrote"])
    (line,) = caplog.messages
    assert line.startswith("127.0.0.1 POST /v1/x\\n1.2.3.4 GET /forged -> 200 in ") and line.endswith("id-7")
    assert "secret" not in line and "user" not in line
    assert ended == [("/v1/x\n1.2.3.4 GET /forged", 200)]


def test_an_application_that_fails_is_logged_as_500(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("fault")

    with caplog.at_level(logging.INFO, logger="llava.serve.logs"), pytest.raises(RuntimeError):
        call(AccessLog(fail))
    assert "-> 500" in caplog.text
