"""Known holes of pages made with gradio, each shown closed on a page that runs."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from page_engine import digit_image
from page_site import Site

SECRET = "the-content-of-a-secret-file"


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=site.url, timeout=30) as found:
        yield found


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def event(client: httpx2.Client, name: str, data: list[Any], **more: Any) -> str:
    """Call an event of the page as its script does; returns all that the server says of it."""
    config = client.get("/config").json()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == name)
    session = secrets.token_hex(6)
    body = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": 1, **more}
    begun = client.post("/gradio_api/queue/join", json=body)
    if begun.status_code != 200:
        return begun.text
    said = ""
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            said += line
            if '"process_completed"' in line or '"close_stream"' in line:
                break
    return said


def test_cve_2024_12065_no_file_of_the_server_is_read(
    client: httpx2.Client, site: Site, secret: Path
) -> None:
    for path in (secret, Path("/etc/passwd"), Path(__file__)):
        for address in (f"/gradio_api/file={path}", f"/file={path}", f"/gradio_api/file=..{path}"):
            reply = client.get(address)
            assert reply.status_code in (403, 404), address
            assert SECRET not in reply.text and "root:" not in reply.text
    forged = {"text": "What?", "files": [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}]}
    n_asked = len(site.engine.asked)
    said = event(client, "add_text", [None, forged, "llava-test", "Default", 0.2, 0.7, 64])
    assert SECRET not in said and len(site.engine.asked) == n_asked
    said = event(client, "take_photo", [{"text": "", "files": []}, {"path": str(secret)}])
    assert SECRET not in said and '"success":false' in said
    chosen = {"index": 0, "value": {"text": "x", "files": [{"path": str(secret)}]}}
    said = event(client, "take_example", [], event_data=chosen)
    assert SECRET not in said and '"success":false' in said  # gradio refuses it before this page would
    stored = {"version": 1, "model": "", "turns": [
        {"text": "", "images": [str(secret)], "mode": "Pad", "answer": None, "failure": None}
    ]}  # fmt: skip
    assert SECRET not in event(client, "share", [stored])


@pytest.mark.parametrize("scheme", ["http", "https", "file", "ftp"])
def test_cve_2024_12068_the_server_fetches_no_address(client: httpx2.Client, site: Site, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:9/latest/meta-data"
    forged = {"text": "What?", "files": [{"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}]}
    n_asked = len(site.engine.asked)
    event(client, "add_text", [None, forged, "llava-test", "Default", 0.2, 0.7, 64])
    assert len(site.engine.asked) == n_asked
    assert client.get(f"/gradio_api/proxy={url}").status_code in (400, 403, 404)
    assert client.get(f"/gradio_api/file={url}", follow_redirects=False).status_code in (400, 403, 404)


@pytest.mark.parametrize(
    "name, status",
    [("a" * 1_000_000 + ".png", 413), ("../../../up.png", 200), ("a\x00b.png", 200)],
    ids=["a million letters", "folders", "NUL"],
)
def test_cve_2024_12070_names_of_uploads_do_no_harm(client: httpx2.Client, name: str, status: int) -> None:
    boundary = "x" * 20
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + digit_image(1).tobytes() + f"\r\n--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    reply = client.post("/gradio_api/upload", content=body, headers={"content-type": kind})
    assert (reply.status_code == status) or reply.status_code in (400, 413)
    assert ".." not in reply.text and client.get("/health").status_code == 200


def test_cve_2024_10907_a_huge_boundary_is_refused(client: httpx2.Client) -> None:
    kind = f"multipart/form-data; boundary={'x' * 200_000}"
    try:
        reply = client.post("/gradio_api/upload", content=b"--x", headers={"content-type": kind})
        assert reply.status_code in (400, 431)
    except httpx2.HTTPError:
        pass  # the connection is closed at once
    assert client.get("/health").status_code == 200


def test_uploads_that_are_too_large_are_refused(client: httpx2.Client) -> None:
    files = {"files": ("a.png", b"\0" * (21 * 2**20))}
    assert client.post("/gradio_api/upload", files=files).status_code == 413


def test_cve_2024_9308_nothing_redirects_elsewhere(client: httpx2.Client) -> None:
    for path in ("//evil.example", "/?next=//evil.example", "/login?redirect=//evil.example", "/logout"):
        reply = client.get(path, headers={"Host": "127.0.0.1"}, follow_redirects=False)
        assert "evil.example" not in reply.headers.get("location", "")


def test_no_event_is_offered_to_programs(client: httpx2.Client) -> None:
    assert client.get("/gradio_api/info").json()["named_endpoints"] == {}
    assert client.get("/docs").status_code == 404 or "swagger" not in client.get("/docs").text.lower()


SWITCHES: dict[str, Callable[[Any], bool]] = {
    "analytics_enabled": lambda one: one is False,
    "run_history": lambda one: not one,
    "footer_links": lambda one: one == [],
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_page_tells_nobody_of_itself(client: httpx2.Client, switch: str) -> None:
    config = client.get("/config").json()
    assert switch not in config or SWITCHES[switch](config[switch]), json.dumps(config.get(switch))
