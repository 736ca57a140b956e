"""Holes of this kind of server that have a number, each shown closed in the OpenAI-compatible one.

The controller, the workers and the page have tests of their own.
"""

from __future__ import annotations

import ast
import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from asking import chat, client_of, data_url, error_of, text, user
from fake_engine import FakeEngine, settings
from PIL import Image
from running import running, wait_until
from starlette.testclient import TestClient

from llava.serve import safe_fetch
from llava.serve.openai.app import create_app
from llava.serve.safe_fetch import FetchPolicy

OPEN = FetchPolicy(remote=True, timeout_s=3)


def at(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture
def open_client(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A server that fetches images of the internet, and would tell if it connected to anything."""

    async def connect(*args: object, **_: object) -> None:
        raise AssertionError(f"a connection was attempted: {args}")

    monkeypatch.setattr(asyncio, "open_connection", connect)
    return client_of(engine, images=OPEN)


def refused(client: TestClient, url: str) -> str:
    error = error_of(chat(client, user(at(url), text("What is this?"))))
    assert error["code"] == "invalid_image"
    return error["message"]


METADATA = [
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/latest/",
    "http://2852039166/latest/",
    "http://0xa9fea9fe/latest/",
    "http://0251.0376.0251.0376/latest/",
]


@pytest.mark.parametrize("url", [*METADATA, "http://localhost:21001/list_models", "http://127.0.0.1:10000"])
def test_cve_2024_12068_an_image_address_reaches_no_inner_service(url: str, open_client: TestClient) -> None:
    refused(open_client, url)


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "../../etc/passwd", "C:\\Windows\\win.ini", "~/.ssh/id_rsa"]
)
def test_cve_2024_12065_no_file_of_the_server_is_read(
    url: str, open_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = Image.open

    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(file)
        return real(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", watched)
    assert "root:" not in refused(open_client, url)
    assert not opened


def test_fastchat_3873_a_file_that_is_an_image_is_not_read_either(
    open_client: TestClient, tmp_path: Path
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    for url in (str(tmp_path / "secret.png"), (tmp_path / "secret.png").as_uri()):
        refused(open_client, url)


@pytest.mark.parametrize(
    "path", ["/v1/models/", "//evil.example.org", "/v1/models/?next=//evil.example.org", "/v1//models"]
)
def test_cve_2024_9308_nothing_redirects(path: str, engine: FakeEngine) -> None:
    client = client_of(engine, api_key="correct-horse-battery")
    headers = {"Host": "evil.example.org", "Authorization": "Bearer correct-horse-battery"}
    for method in ("GET", "POST"):
        reply = client.request(method, path, headers=headers, follow_redirects=False)
        assert reply.status_code in (404, 405) and "location" not in reply.headers


def multipart(name: str, boundary: str = "b") -> tuple[bytes, dict[str, str]]:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n'
    body = f"{head}\r\nx\r\n--{boundary}--\r\n"
    return body.encode(), {"content-type": f"multipart/form-data; boundary={boundary}"}


@pytest.mark.parametrize(
    "body, headers",
    [multipart("a" * 2_000_000), multipart("a.png", "b" * 10_000), multipart("a.png" + "/.." * 500_000)],
    ids=["long name", "long boundary", "name of dots"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/upload"])
def test_cve_2024_12070_and_10907_and_10912_uploads_cost_nothing(
    path: str, body: bytes, headers: dict[str, str], engine: FakeEngine
) -> None:
    began = time.process_time()
    reply = client_of(engine).post(path, content=body, headers=headers)
    error_of(reply, 404 if path == "/upload" else 415)
    assert time.process_time() - began < 30  # they took minutes


@pytest.mark.parametrize(
    "path",
    [
        "/register_worker",
        "/worker_generate_stream",
        "/refresh_all_workers",
        "/queue/join",
        "/gradio_api/queue/join",
        "/proxy=http://127.0.0.1/",
        "/file=/etc/passwd",
    ],
)
def test_cve_2024_9309_and_10044_and_11603_there_is_no_such_endpoint(path: str, engine: FakeEngine) -> None:
    reply = client_of(engine).post(path, json={"worker_name": "http://127.0.0.1:1", "model": "llava-test"})
    error_of(reply, 404)
    assert not engine.asked


def test_cve_2026_6607_a_slow_request_stops_nobody_else(engine: FakeEngine) -> None:
    """Reading a prompt and waiting for an answer happen off the event loop."""
    engine.take.clear()
    with running(create_app(engine, settings())) as url:
        body = {"model": "llava-test", "messages": [user(at(data_url()), text("What?"))]}
        asking = [
            threading.Thread(target=httpx2.post, args=(f"{url}/v1/chat/completions",), kwargs={"json": body})
            for _ in range(3)
        ]
        for one in asking:
            one.start()
        wait_until(lambda: engine.arrived == 3)
        assert httpx2.get(f"{url}/health", timeout=30).status_code == 200
        assert not engine.asked
        engine.take.set()
        for one in asking:
            one.join(30)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1\\@example.org/a.png",
        "http://example.org\\@127.0.0.1/a.png",
        "http://example.org#@127.0.0.1/",
        "http://127.0.0.1:80\\@example.org:80/",
        "http://example.org@127.0.0.1/",
        "http://127.0.0.1%00.example.org/",
        "http://example.org%2f@127.0.0.1/",
    ],
)
def test_cve_2026_24779_and_25960_parsers_cannot_be_played_against_each_other(
    url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of hosts is checked on the host that is connected to."""
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr(safe_fetch, "resolve", resolve)
    policy = FetchPolicy(remote=True, hosts=("example.org",))
    refused(client_of(engine, images=policy), url)
    assert set(asked) <= {"example.org"}


def test_ghsa_3f6c_and_llamafactory_10646_rebinding_and_redirects_lead_nowhere() -> None:
    """Shown with servers in test_safe_fetch; here that the application fetches in that one way alone."""
    source = Path(safe_fetch.__file__).parent
    loaders = {"load_image", "urlopen", "requests", "as_image"}
    for path in [*(source / "openai").glob("*.py"), source / "safe_fetch.py"]:
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & loaders, path.name


def test_cve_2026_3059_and_3060_and_7301_nothing_is_unpickled_from_a_socket() -> None:
    banned = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "zmq", "joblib", "multiprocessing"}
    for path in Path(safe_fetch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {one.partition(".")[0] for one in found} & banned, path.name


def test_an_image_is_judged_by_its_bytes_and_not_by_what_it_calls_itself(engine: FakeEngine) -> None:
    client = client_of(engine)
    png = data_url().partition(",")[2]
    for name in ("image/jpeg", "image/svg+xml", "image/x-anything"):
        assert chat(client, user(at(f"data:{name};base64,{png}"))).status_code == 200
    html = "data:image/png;base64,PGh0bWw+PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0PjwvaHRtbD4="
    assert "script" not in refused(client, html)


def test_a_web_page_elsewhere_cannot_ask(engine: FakeEngine) -> None:
    """Without a key: no foreign host name, no form post, and no permission for other origins."""
    client = client_of(engine)
    body = '{"model": "llava-test", "messages": [{"role": "user", "content": "Hi"}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        reply = client.post("/v1/chat/completions", content=body, headers={"content-type": kind})
        error_of(reply, 415)
    asks = {"Origin": "http://evil.example.org", "Access-Control-Request-Method": "POST"}
    reply = client.options("/v1/chat/completions", headers=asks)
    assert reply.status_code == 403 and not any("access-control" in name for name in reply.headers)
    assert not engine.asked
