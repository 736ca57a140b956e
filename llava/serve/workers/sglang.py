"""The worker in front of an SGLang server: the reference's protocol on one side, POST /generate on the other.

SGLang's native API: https://docs.sglang.io (Native APIs, Sampling Parameters).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import httpx2

from llava.inference.engine.requests import KEEP_ALIVE_S
from llava.mm_utils import get_model_name_from_path
from llava.serve.errors import ServeError
from llava.serve.workers import frames
from llava.serve.workers.base import BaseWorker
from llava.serve.workers.client import encode_png
from llava.serve.workers.frames import frame
from llava.serve.workers.params import WorkerParams
from llava.utils import UserError

logger = logging.getLogger(__name__)


class ModelWorker(BaseWorker):
    """A worker whose answers come from an SGLang server at `sgl_endpoint`.

    The arguments up to model_name are the reference's. limit_model_concurrency: requests that SGLang gets at
    a time. Raises UserError when no SGLang server answers there.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        sgl_endpoint: str,
        worker_id: str,
        no_register: bool,
        model_name: str | None,
        *,
        limit_model_concurrency: int = 5,
        api_key: str | None = None,
    ) -> None:
        self.endpoint = sgl_endpoint.rstrip("/")
        name = model_name or get_model_name_from_path(_model_path(self.endpoint))
        super().__init__(
            None if no_register else controller_addr, worker_addr, worker_id, [name], api_key=api_key
        )
        self._free = threading.BoundedSemaphore(limit_model_concurrency)
        self._counting = threading.Lock()
        self._n_requests = 0
        self.start()

    def get_queue_length(self) -> int:
        """Return how many requests run or wait."""
        return self._n_requests

    def generate_stream(self, params: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """Yield the frames of an answer; raises UserError, ServeError."""
        request = WorkerParams.read(params)
        self._count(1)
        try:
            while not self._free.acquire(timeout=KEEP_ALIVE_S):
                yield frame(request.prompt)
            try:
                for text in self._answer(request):
                    yield frame(request.prompt + text)
            finally:
                self._free.release()
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._n_requests += change

    def _answer(self, request: WorkerParams) -> Iterator[str]:
        """Yield the answer so far, as SGLang streams it. Raises ServeError."""
        sampling = request.sampling
        content = {
            "text": request.prompt,
            # encoded again: SGLang would open a text that is a path or an address
            "image_data": [encode_png(one) for one in request.images] or None,
            "sampling_params": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_new_tokens": sampling.max_new_tokens,
                "stop": list(sampling.stop) or None,
            },
            "stream": True,
        }
        try:
            with (
                frames.open_client(None, read_timeout_s=frames.STREAM_TIMEOUT_S) as client,
                client.stream("POST", f"{self.endpoint}/generate", json=content) as response,
            ):
                if response.status_code != 200:
                    response.read()
                    raise _refused(f"HTTP status {response.status_code}: {response.text[:300]}")
                yield from _read_events(response.iter_lines())
        except httpx2.HTTPError as error:
            message = f"the SGLang server does not answer ({type(error).__name__})"
            raise ServeError(502, message, code="backend_gone", retry_after_s=1) from error


def _read_events(lines: Iterable[str]) -> Iterator[str]:
    """Yield the text so far of each event of a stream. Raises ServeError."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise _refused("an event that is no JSON") from error
        if isinstance(event, dict) and isinstance(event.get("text"), str):
            yield event["text"]
        else:
            raise _refused(str(event.get("error", event) if isinstance(event, dict) else event)[:300])
    raise ServeError(502, "the SGLang server broke off", code="backend_gone", retry_after_s=1)


def _refused(words: str) -> ServeError:
    return ServeError(502, f"the SGLang server answered: {words}", code="backend_error")


def _model_path(endpoint: str) -> str:
    """Ask an SGLang server for its model. Raises UserError."""
    try:
        with frames.open_client(None) as client:
            response = client.get(f"{endpoint}/get_model_info")
            response.raise_for_status()
            return str(response.json()["model_path"])
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"no SGLang server answers at --sgl-endpoint {endpoint} ({type(error).__name__}); start one with "
            "`python -m sglang.launch_server --model-path ...` in its own environment"
        ) from error
