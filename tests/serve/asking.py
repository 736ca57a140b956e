"""Asking an application without a socket: texts and images, and what an error must look like."""

from __future__ import annotations

import base64
import io
from typing import Any

from fake_engine import FakeEngine, settings
from PIL import Image
from starlette.testclient import TestClient

from llava.serve.openai.app import create_app

URL = "http://127.0.0.1"
MODEL = "llava-test"


def client_over(app: Any) -> TestClient:
    return TestClient(app, base_url=URL)


def client_of(engine: FakeEngine, **changes: Any) -> TestClient:
    return client_over(create_app(engine, settings(**changes)))


def data_url(color: str = "red", size: tuple[int, int] = (5, 4)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image(color: str = "red") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(color)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


def chat(client: TestClient, *messages: dict[str, Any], **fields: Any) -> Any:
    body = {"model": MODEL, "messages": list(messages) or [user("Hi")], **fields}
    return client.post("/v1/chat/completions", json=body)


def error_of(reply: Any, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
