"""What workers have in common: registration, heart beats, endpoints, and failures as frames."""

from __future__ import annotations

import logging
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import aclosing
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.errors import ServeError
from llava.serve.guard import error_handlers
from llava.serve.openai.answering import serve_error
from llava.serve.workers import frames
from llava.serve.workers.controller_app import read_object
from llava.serve.workers.frames import MESSAGES, ErrorCode, error_frame
from llava.serve.workers.threads import in_thread

logger = logging.getLogger(__name__)

# How long a worker waits before it looks for a controller again that was not there.
RETRY_S = 3.0

# This process among the workers of a machine.
worker_id = uuid.uuid4().hex[:6]


class BaseWorker(ABC):
    """A worker of a controller; safe to use from several threads.

    worker_addr: where it is reached. controller_addr: None for one that registers nowhere.
    """

    def __init__(
        self,
        controller_addr: str | None,
        worker_addr: str,
        worker_id: str,
        model_names: list[str],
        *,
        api_key: str | None = None,
    ) -> None:
        self.controller_addr = None if controller_addr is None else controller_addr.rstrip("/")
        self.worker_addr = worker_addr
        self.worker_id = worker_id
        self.model_names = model_names
        self._api_key = api_key
        self._closed = threading.Event()
        self._registered = False
        self.heart_beat_thread: threading.Thread | None = None

    # ---- what a worker is ----

    @abstractmethod
    def generate_stream(self, params: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """Yield the frames of an answer; raises what goes wrong."""

    @abstractmethod
    def get_queue_length(self) -> int:
        """Return how many requests run or wait."""

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return True

    @property
    def template(self) -> str | None:
        """The key of conv_templates that prompts are to have; None where only a name suggests one."""
        return None

    @property
    def takes_messages(self) -> bool:
        """Whether requests may have messages, which the worker renders, in place of a prompt."""
        return False

    def get_status(self) -> dict[str, Any]:
        """Return what the controller asks for; what older workers do not tell comes last."""
        known: dict[str, Any] = {}
        if self.template:
            known["templates"] = dict.fromkeys(self.model_names, self.template)
        if self.takes_messages:
            known[MESSAGES] = self.model_names
        return {"model_names": self.model_names, "speed": 1, "queue_length": self.get_queue_length(), **known}

    def generate_stream_gate(self, params: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """Yield the frames of an answer; a failure is a last frame that says what it was.

        An empty list of messages is answered with the status as well: clients ask so whether messages are
        taken, behind controllers that do not tell it.
        """
        try:
            yield from self.generate_stream(params)
        except Exception as error:
            status = {"worker_status": self.get_status()} if params.get(MESSAGES) == [] else {}
            yield error_frame(ErrorCode.FAILED, serve_error(error), None, **status)

    # ---- its controller ----

    def start(self) -> None:
        """Register, and keep doing so whenever the controller comes (back), from a thread."""
        if self.controller_addr is None:
            return
        self.heart_beat_thread = threading.Thread(
            target=heart_beat_worker, args=(self,), name="llava-worker-heart-beat", daemon=True
        )
        self.heart_beat_thread.start()

    def close(self) -> None:
        """End the heart beats."""
        self._closed.set()

    def wait(self, seconds: float) -> bool:
        """Wait; return whether the worker was closed meanwhile."""
        return self._closed.wait(seconds)

    def register_to_controller(self) -> None:
        """Tell the controller of this worker. Raises httpx2.HTTPError."""
        logger.info("registering at %s as %s", self.controller_addr, self.worker_addr)
        content = {
            "worker_name": self.worker_addr,
            "check_heart_beat": True,
            "worker_status": self.get_status(),
        }
        self._tell("/register_worker", content)
        self._registered = True

    def send_heart_beat(self) -> None:
        """Tell the controller that this worker lives; registers where it is not known (any more).

        Raises httpx2.HTTPError when the controller does not answer.
        """
        if self._registered:
            content = {"worker_name": self.worker_addr, "queue_length": self.get_queue_length()}
            found = self._tell("/receive_heart_beat", content)
            self._registered = isinstance(found, dict) and found.get("exist") is True
        if not self._registered:
            self.register_to_controller()

    def _tell(self, path: str, content: Mapping[str, Any]) -> Any:
        return frames.post(f"{self.controller_addr}{path}", content, api_key=self._api_key)


def heart_beat_worker(worker: BaseWorker) -> None:
    """Send heart beats until the worker is closed; a controller that is not there is looked for again."""
    complained = False
    pause = 0.0
    while not worker.wait(pause):
        if not worker.alive:
            logger.error("the engine has ended: no heart beats any more")
            return
        pause = WORKER_HEART_BEAT_INTERVAL
        try:
            worker.send_heart_beat()
            complained = False
        except httpx2.HTTPStatusError as error:
            said = error.response.text[:300]
            logger.error("the controller refuses this worker (%d): %s", error.response.status_code, said)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            pause = RETRY_S
            if not complained:
                words = "no controller at %s (%s); looking for it every %g s"
                logger.warning(words, worker.controller_addr, type(error).__name__, RETRY_S)
            complained = True


# ---- HTTP ----


def create_app(current: Callable[[], BaseWorker]) -> Starlette:
    """Return the application of a worker; `current` gives it when a request comes."""

    async def worker_generate_stream(request: Request) -> Response:
        params = await read_object(request)
        frames.end_with_frame(request.scope)
        return StreamingResponse(_answer(current(), params))

    async def worker_get_status(request: Request) -> Response:
        return JSONResponse(current().get_status())

    async def health(request: Request) -> Response:
        worker = current()
        content = {"status": "ok" if worker.alive else "dead", "models": worker.model_names}
        return JSONResponse(content, 200 if worker.alive else 503)

    return Starlette(
        routes=[
            Route("/worker_generate_stream", worker_generate_stream, methods=["POST"]),
            Route("/worker_get_status", worker_get_status, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers=error_handlers(),
    )


async def _answer(worker: BaseWorker, params: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Yield an answer's frames; a client that goes away ends it."""
    async with aclosing(in_thread(worker.generate_stream_gate(params))) as frames:
        async for one in frames:
            yield one


# The worker that `app` asks, for programs that start one as the reference's did; others call create_app.
worker: BaseWorker | None = None


def _current() -> BaseWorker:
    if worker is None:
        raise ServeError(503, "no worker was started in this process", code="no_worker")
    return worker


app = create_app(_current)
