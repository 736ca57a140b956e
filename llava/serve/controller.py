"""The controller: workers register with it, and it sends each request to one that has the model.

`python -m llava.serve.controller [--host --port --dispatch-method]`. Workers and pages of the reference talk
to it unchanged. It connects to registered addresses that match its allow-list, and to no others.
"""

from __future__ import annotations

import argparse
import logging
import random
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import httpx2

from llava.arguments import ProgramParser
from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.serve.auth import check_binding, read_api_key
from llava.serve.errors import ServeError, bad_request
from llava.serve.logs import set_up_logging
from llava.serve.sockets import bind
from llava.serve.workers import frames
from llava.serve.workers.addresses import WorkerAddressError, WorkerAddresses
from llava.serve.workers.controller_app import create_app, read_queue_length
from llava.serve.workers.frames import MESSAGES, ErrorCode, error_frame
from llava.serve.workers.threads import give_back_memory
from llava.utils import UserError, run_program

logger = logging.getLogger(__name__)

MAX_MODELS_OF_A_WORKER = 64
MAX_SPEED = 1e9


class DispatchMethod(Enum):
    """How a worker is chosen among those that have the model."""

    LOTTERY = auto()  # at random, by speed
    SHORTEST_QUEUE = auto()  # the shortest queue for its speed

    @classmethod
    def from_str(cls, name: str) -> DispatchMethod:
        """Return the method of a name; UserError for an unknown one."""
        try:
            return cls[name.upper()]
        except KeyError as error:
            raise UserError(f"the dispatch method is {name!r}; expected lottery or shortest_queue") from error


@dataclass
class WorkerInfo:
    """What the controller knows of a worker; last_heart_beat is a time of time.time()."""

    model_names: list[str]
    speed: float
    queue_length: int
    check_heart_beat: bool
    last_heart_beat: float = field(default_factory=time.time)
    templates: dict[str, str] = field(default_factory=dict)  # of those models whose worker tells it
    messages: tuple[str, ...] = ()  # models that may be asked by messages in place of a prompt

    @classmethod
    def of_status(cls, status: object, check_heart_beat: bool) -> WorkerInfo:
        """Read a worker's status. Raises ServeError for one that is malformed."""
        if not isinstance(status, Mapping):
            raise bad_request("worker_status is no JSON object", param="worker_status")
        names, speed, queue = (status.get(one) for one in ("model_names", "speed", "queue_length"))
        if (
            not isinstance(names, list)
            or not 0 < len(names) <= MAX_MODELS_OF_A_WORKER
            or not all(isinstance(one, str) and one for one in names)
        ):
            raise bad_request("model_names is no list of names", param="worker_status.model_names")
        if isinstance(speed, bool) or not isinstance(speed, (int, float)) or not 0 < speed <= MAX_SPEED:
            raise bad_request(f"speed is no number from 0 to {MAX_SPEED:g}", param="worker_status.speed")
        told = status.get("templates")
        templates = {one: told[one] for one in names if isinstance(told, Mapping) and _is_key(told.get(one))}
        taking = status.get(MESSAGES)
        messages = tuple(one for one in names if isinstance(taking, list) and one in taking)
        queue_length = read_queue_length(queue)
        return cls(
            list(names), float(speed), queue_length, check_heart_beat, templates=templates, messages=messages
        )


def _is_key(value: object) -> bool:
    """Tell whether a value could be the key of a template."""
    return isinstance(value, str) and 0 < len(value) <= 100


class Controller:
    """The workers that are registered, and the ways to ask them; safe to use from several threads.

    addresses: those that it may connect to (default: this machine). api_key: sent to the workers.
    """

    def __init__(
        self,
        dispatch_method: str,
        *,
        addresses: WorkerAddresses | None = None,
        api_key: str | None = None,
        max_workers: int = 1000,
    ) -> None:
        self.dispatch_method = DispatchMethod.from_str(dispatch_method)
        self.addresses = WorkerAddresses() if addresses is None else addresses
        self.worker_info: dict[str, WorkerInfo] = {}
        self.max_workers = max_workers
        self._api_key = api_key
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.heart_beat_thread = threading.Thread(
            target=heart_beat_controller, args=(self,), name="llava-controller-heart-beat", daemon=True
        )
        self.heart_beat_thread.start()

    def close(self) -> None:
        """End the thread that looks after the workers."""
        self._closed.set()

    def wait(self, seconds: float) -> bool:
        """Wait; return whether the controller was closed meanwhile."""
        return self._closed.wait(seconds)

    # ---- the list of workers ----

    def register_worker(
        self, worker_name: str, check_heart_beat: bool, worker_status: Mapping[str, Any] | None
    ) -> bool:
        """Take a worker in; without a status it is asked for one. Returns whether it is registered now.

        worker_name: its address. Raises WorkerAddressError for one that is not allowed, ServeError for a
        malformed status or a full list.
        """
        name = self.addresses.check(worker_name)
        status = worker_status or self.get_worker_status(name)
        if not status:
            return False
        info = WorkerInfo.of_status(status, check_heart_beat)
        with self._lock:
            if name not in self.worker_info and len(self.worker_info) >= self.max_workers:
                raise ServeError(503, "too many workers are registered", code="too_many_workers")
            before = self.worker_info.get(name)
            self.worker_info[name] = info
            clashes = [] if before and before.templates == info.templates else self._clashes(name, info)
        for other, model, key in clashes[:1]:
            words = "workers %s and %s serve %r with other templates (%s, %s); give one another --model-name"
            logger.warning(words, name, other, model, info.templates[model], key)
        is_new = before is None
        logger.info("%s worker %s with %s", "new" if is_new else "known", name, ", ".join(info.model_names))
        return True

    def _clashes(self, name: str, info: WorkerInfo) -> list[tuple[str, str, str]]:
        """List (worker, model, template) where another worker has a model's name with another template."""
        return [
            (other, model, known.templates[model])
            for other, known in self.worker_info.items()
            for model, key in info.templates.items()
            if other != name and known.templates.get(model, key) != key
        ]

    def get_worker_status(self, worker_name: str) -> dict[str, Any] | None:
        """Ask a worker for its status; None, and a log line, if it does not answer."""
        try:
            url = self.addresses.check(worker_name) + "/worker_get_status"
            status = frames.post(url, api_key=self._api_key)
        except (httpx2.HTTPError, ValueError) as error:
            logger.warning("worker %s does not tell its status: %s", worker_name, _words(error))
            return None
        return status if isinstance(status, dict) else None

    def remove_worker(self, worker_name: str) -> None:
        """Drop a worker; one that is not there is no error."""
        with self._lock:
            self.worker_info.pop(worker_name, None)

    def refresh_all_workers(self) -> None:
        """Ask every worker for its status again; those that do not answer are dropped."""
        with self._lock:
            known = dict(self.worker_info)
        for name, info in known.items():
            if not self._is_there(name, info.check_heart_beat):
                logger.info("dropped worker %s, which does not answer", name)
                self.remove_worker(name)

    def _is_there(self, name: str, check_heart_beat: bool) -> bool:
        try:
            return self.register_worker(name, check_heart_beat, None)
        except (WorkerAddressError, ServeError) as error:
            logger.warning("worker %s: %s", name, error)
            return False

    def list_models(self) -> list[str]:
        """Return the names of all models that workers have."""
        with self._lock:
            names = (one for info in self.worker_info.values() for one in info.model_names)
            return list(dict.fromkeys(names))

    def list_templates(self) -> dict[str, str]:
        """Return model -> key of its template, for the models whose worker tells it."""
        with self._lock:
            return {name: key for info in self.worker_info.values() for name, key in info.templates.items()}

    def list_messages(self) -> list[str]:
        """Return the models that a worker takes messages for."""
        with self._lock:
            names = (one for info in self.worker_info.values() for one in info.messages)
            return list(dict.fromkeys(names))

    def get_worker_address(self, model_name: str, *, by_messages: bool = False) -> str:
        """Choose a worker for a model; "" if none has it. Its queue counts as one longer from now on.

        by_messages: among those that take messages.
        """
        with self._lock:
            able = {
                name: one
                for name, one in self.worker_info.items()
                if model_name in (one.messages if by_messages else one.model_names)
            }
            if not able:
                return ""
            if self.dispatch_method is DispatchMethod.LOTTERY:
                (chosen,) = random.choices(list(able), weights=[one.speed for one in able.values()])
            else:
                chosen = min(able, key=lambda name: able[name].queue_length / able[name].speed)
                able[chosen].queue_length += 1
        return chosen

    def receive_heart_beat(self, worker_name: str, queue_length: int) -> bool:
        """Note that a worker lives; False tells it to register again."""
        try:
            name = self.addresses.check(worker_name)
        except WorkerAddressError:
            return False
        with self._lock:
            info = self.worker_info.get(name)
            if info is None:
                return False
            info.queue_length = queue_length
            info.last_heart_beat = time.time()
        return True

    def remove_stable_workers_by_expiration(self) -> None:
        """Drop the workers whose heart beat is overdue."""
        oldest = time.time() - CONTROLLER_HEART_BEAT_EXPIRATION
        with self._lock:
            late = [
                name
                for name, one in self.worker_info.items()
                if one.check_heart_beat and one.last_heart_beat < oldest
            ]
            for name in late:
                del self.worker_info[name]
        for name in late:
            logger.warning(
                "dropped worker %s: no heart beat for %d s", name, CONTROLLER_HEART_BEAT_EXPIRATION
            )

    # ---- what it does as if it were a worker ----

    def worker_api_get_status(self) -> dict[str, Any]:
        """Return the status of all workers as that of one."""
        with self._lock:
            names = list(self.worker_info)
        models: dict[str, None] = {}
        speed, queue_length = 0.0, 0
        for name in names:
            status = self.get_worker_status(name)
            if status is None:
                continue
            try:
                info = WorkerInfo.of_status(status, check_heart_beat=True)
            except ServeError as error:  # the others are told nevertheless
                logger.warning("worker %s tells a status that is malformed: %s", name, error)
                continue
            models.update(dict.fromkeys(info.model_names))
            speed += info.speed
            queue_length += info.queue_length
        return {"model_names": sorted(models), "speed": speed, "queue_length": queue_length}

    def worker_api_generate_stream(self, params: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """Yield the frames of a worker's answer to a request, or one that says why there is none.

        A worker that cannot be reached is dropped, and the next one is asked.
        """
        model = str(params.get("model"))
        by_messages = params.get(MESSAGES) is not None
        tried: set[str] = set()
        while True:
            address = self.get_worker_address(model, by_messages=by_messages)
            if not address or address in tried:
                yield _no_worker(model, bool(tried), prompts_only=by_messages and model in self.list_models())
                return
            tried.add(address)
            begun = False
            try:
                for chunk in self._relay(address, params):
                    begun = True
                    yield chunk
                return
            except httpx2.ConnectError as error:
                logger.warning("worker %s cannot be reached: %s", address, _words(error))
                self.remove_worker(address)
                if not begun:
                    continue
            except httpx2.HTTPStatusError as error:
                logger.warning("worker %s refuses a request: %s", address, _words(error))
                if error.response.is_client_error:
                    yield _worker_refuses(error.response.status_code)
                    return
            except httpx2.HTTPError as error:
                logger.warning("worker %s broke off: %s", address, _words(error))
            yield _worker_gone()
            return

    def _relay(self, address: str, params: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield what a worker answers. Raises httpx2.HTTPError."""
        url = self.addresses.check(address) + "/worker_generate_stream"
        with (
            frames.open_client(self._api_key, read_timeout_s=frames.STREAM_TIMEOUT_S) as client,
            client.stream("POST", url, json=dict(params)) as response,
        ):
            response.raise_for_status()
            yield from response.iter_raw()


def _no_worker(model: str, were_dead: bool, *, prompts_only: bool) -> bytes:
    gone = " (those that did could not be reached)" if were_dead else ""
    if prompts_only:
        message = f"no worker of the model {model[:200]!r} takes messages; send a prompt{gone}"
    else:
        message = f"no worker has the model {model[:200]!r}{gone}"
    return error_frame(ErrorCode.NO_WORKER, ServeError(503, message, code="no_worker", retry_after_s=5))


def _worker_refuses(status: int) -> bytes:
    """Return the frame of a worker that will refuse the request again."""
    why = "the request"
    if status in (401, 403):
        why = "the controller's key: start controller and workers with one key (LLAVA_API_KEY)"
    message = f"the worker refuses {why} (status {status})"
    return error_frame(ErrorCode.FAILED, ServeError(502, message, code="worker_refuses"))


def _worker_gone() -> bytes:
    message = "the worker broke off; ask again"
    return error_frame(ErrorCode.WORKER_GONE, ServeError(502, message, code="worker_gone", retry_after_s=1))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def heart_beat_controller(controller: Controller) -> None:
    """Drop workers without a heart beat, and memory that is free, until the controller is closed."""
    while not controller.wait(CONTROLLER_HEART_BEAT_EXPIRATION):
        controller.remove_stable_workers_by_expiration()
        give_back_memory()


# ---- the program ----

# The controller that `app` asks, for programs that start it as the reference's did; others call create_app.
controller: Controller | None = None


def _current() -> Controller:
    if controller is None:
        raise ServeError(503, "no controller was started in this process", code="no_controller")
    return controller


app = create_app(_current)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = ProgramParser(
        prog="python -m llava.serve.controller",
        description="Send requests to the workers that register here; stop it with Ctrl-C.",
    )
    parser.add_argument("--host", default="localhost", help="address to listen at (default: localhost)")
    parser.add_argument("--port", type=int, default=21001, help="default: 21001")
    parser.add_argument(
        "--dispatch-method", choices=["lottery", "shortest_queue"], default="shortest_queue",
        help="how a worker is chosen (default: shortest_queue)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-worker", action="append", default=[], metavar="HOST",
        help="host, *.example.org, IP address or network that workers may have; may be repeated (default: "
        "this machine only)",
    )  # fmt: skip
    parser.add_argument(
        "--api-key", default=None, help="key of all endpoints, sent to workers as well (or LLAVA_API_KEY)"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Serve until the process is stopped. Raises UserError for what keeps the program from starting."""
    global controller
    from llava.serve.web_server import run_server  # loads uvicorn

    key = read_api_key(args.api_key)
    check_binding(args.host, key)
    addresses = WorkerAddresses(args.allow_worker)
    set_up_logging("info", secrets=(key,))
    with bind(args.host, args.port) as listening:
        controller = Controller(args.dispatch_method, addresses=addresses, api_key=key)
        run_server(app, listening, api_key=key)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
