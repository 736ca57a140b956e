"""Asking a controller or a worker from a program: each failure is one sentence."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx2
from PIL import Image

from llava.serve.workers import frames
from llava.utils import UserError


def call(address: str, path: str, content: Mapping[str, Any] | None = None, *, api_key: str | None) -> Any:
    """Send a request and return the JSON of the answer. Raises UserError."""
    try:
        return frames.post(address.rstrip("/") + path, content, api_key=api_key)
    except httpx2.HTTPStatusError as error:
        raise UserError(_refusal(address, error.response)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise UserError(_unreachable(address, error)) from error


def stream(address: str, params: Mapping[str, Any], *, api_key: str | None) -> Iterator[dict[str, Any]]:
    """Yield the frames of an answer of a worker or a controller. Raises UserError."""
    url = address.rstrip("/") + "/worker_generate_stream"
    try:
        with (
            frames.open_client(api_key, read_timeout_s=frames.STREAM_TIMEOUT_S) as client,
            client.stream("POST", url, json=dict(params)) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise UserError(_refusal(address, response))
            yield from frames.read_frames(response.iter_raw())
    except (httpx2.HTTPError, httpx2.InvalidURL, frames.FrameError) as error:
        raise UserError(_unreachable(address, error)) from error


async def stream_frames(
    client: httpx2.AsyncClient, address: str, params: Mapping[str, Any], *, headers: Mapping[str, str]
) -> AsyncIterator[dict[str, Any]]:
    """Yield the frames of an answer without blocking the event loop; closing it ends the answer.

    Raises httpx2.HTTPError and frames.FrameError, httpx2.HTTPStatusError for a request that is refused.
    """
    url = address.rstrip("/") + "/worker_generate_stream"
    reader = frames.FrameReader()
    async with client.stream("POST", url, json=dict(params), headers=dict(headers)) as response:
        if response.status_code != 200:
            await response.aread()
            response.raise_for_status()
        async for chunk in response.aiter_raw():
            for one in reader.feed(chunk):
                yield one
    reader.end()


def encode_png(image: Image.Image) -> str:
    """Return an image as the base64 text that workers take; PNG loses nothing."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _unreachable(address: str, error: Exception) -> str:
    return (
        f"{address} does not answer as a controller or worker ({type(error).__name__}: {error}); is it "
        "running, and is this its address (http://host:port)?"
    )


def _refusal(address: str, response: httpx2.Response) -> str:
    """Return what a server says of a request that it refuses."""
    try:
        said = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = f"HTTP status {response.status_code}"
    return f"{address} refuses the request: {said}"
