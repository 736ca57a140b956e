"""The controller's endpoints, as the reference's workers and pages call them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llava.serve.errors import ServeError, bad_request
from llava.serve.guard import error_handlers, respond
from llava.serve.json_body import read_json
from llava.serve.workers.addresses import WorkerAddressError
from llava.serve.workers.frames import MESSAGES, ErrorCode, end_with_frame, error_frame
from llava.serve.workers.threads import in_thread

# Streams that may run at a time; each holds a thread, which waits for its worker.
MAX_STREAMS = 256


class AnyController(Protocol):
    """What the endpoints ask of a controller; see llava.serve.controller.Controller."""

    def register_worker(
        self, worker_name: str, check_heart_beat: bool, worker_status: Mapping[str, Any] | None
    ) -> bool: ...
    def refresh_all_workers(self) -> None: ...
    def list_models(self) -> list[str]: ...
    def list_templates(self) -> dict[str, str]: ...
    def list_messages(self) -> list[str]: ...
    def get_worker_address(self, model_name: str) -> str: ...
    def receive_heart_beat(self, worker_name: str, queue_length: int) -> bool: ...
    def worker_api_get_status(self) -> dict[str, Any]: ...
    def worker_api_generate_stream(self, params: Mapping[str, Any]) -> Generator[bytes, None, None]: ...


def create_app(current: Callable[[], AnyController]) -> Starlette:
    """Return the application of a controller; `current` gives it when a request comes."""
    endpoints = _Endpoints(current)
    routes = {
        "/register_worker": endpoints.register_worker,
        "/refresh_all_workers": endpoints.refresh_all_workers,
        "/list_models": endpoints.list_models,
        "/get_worker_address": endpoints.get_worker_address,
        "/receive_heart_beat": endpoints.receive_heart_beat,
        "/worker_generate_stream": endpoints.worker_generate_stream,
        "/worker_get_status": endpoints.worker_get_status,
    }
    return Starlette(
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in routes.items()),
            Route("/health", endpoints.health, methods=["GET"]),
        ],
        exception_handlers={**error_handlers(), WorkerAddressError: _answer_address},
    )


async def _answer_address(request: Request, error: Exception) -> Response:
    return respond(ServeError(403, str(error), code="worker_not_allowed", param="worker_name"))


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request. Raises ServeError."""
    content = await read_json(request)
    if not isinstance(content, dict):
        raise bad_request("the body is no JSON object")
    return content


def text_of(content: Mapping[str, Any], name: str) -> str:
    """Return a text of a request. Raises ServeError."""
    value = content.get(name)
    if not isinstance(value, str) or not value:
        raise bad_request(f"{name} is missing or no text", param=name)
    return value


def read_queue_length(value: object) -> int:
    """Return a queue length of a message. Raises ServeError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise bad_request("queue_length is no number of at least 0", param="queue_length")
    return value


class _Endpoints:
    """Whatever may wait for a worker runs in a thread: the event loop always answers heart beats."""

    def __init__(self, current: Callable[[], AnyController]) -> None:
        self._current = current
        self._streams = 0

    async def register_worker(self, request: Request) -> Response:
        content = await read_object(request)
        name, beats = text_of(content, "worker_name"), bool(content.get("check_heart_beat"))
        status = content.get("worker_status")
        await run_in_threadpool(self._current().register_worker, name, beats, status)
        return JSONResponse(None)

    async def refresh_all_workers(self, request: Request) -> Response:
        await run_in_threadpool(self._current().refresh_all_workers)
        return JSONResponse(None)

    async def list_models(self, request: Request) -> Response:
        templates = self._current().list_templates()
        known: dict[str, Any] = {"templates": templates} if templates else {}
        # told also when it is empty: a client asks the workers of a controller that tells nothing
        known[MESSAGES] = self._current().list_messages()
        return JSONResponse({"models": self._current().list_models(), **known})

    async def get_worker_address(self, request: Request) -> Response:
        model = text_of(await read_object(request), "model")
        return JSONResponse({"address": self._current().get_worker_address(model)})

    async def receive_heart_beat(self, request: Request) -> Response:
        content = await read_object(request)
        queue_length = read_queue_length(content.get("queue_length"))
        exist = self._current().receive_heart_beat(text_of(content, "worker_name"), queue_length)
        return JSONResponse({"exist": exist})

    async def worker_get_status(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._current().worker_api_get_status))

    async def worker_generate_stream(self, request: Request) -> Response:
        params = await read_object(request)
        end_with_frame(request.scope)
        return StreamingResponse(self._relay(self._current(), params))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": self._current().list_models()})

    async def _relay(self, controller: AnyController, params: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Yield what a worker answers; a client that goes away ends the request to the worker."""
        if self._streams >= MAX_STREAMS:
            full = ServeError(503, "too many requests are running", code="too_many_streams", retry_after_s=5)
            yield error_frame(ErrorCode.FAILED, full)
            return
        self._streams += 1
        frames = controller.worker_api_generate_stream(params)
        try:
            async with aclosing(in_thread(frames)) as relayed:
                async for one in relayed:
                    yield one
        finally:
            self._streams -= 1
