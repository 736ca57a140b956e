"""The controller: who may register, how a worker is chosen, how answers are relayed, and its failures."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest
from fake_worker import Worker, status
from running import free_port, running, wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

import llava.serve.controller
from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.serve.controller import Controller, DispatchMethod, WorkerInfo
from llava.serve.errors import ServeError
from llava.serve.guard import guard
from llava.serve.workers.controller_app import create_app
from llava.serve.workers.frames import read_frames
from llava.utils import UserError

HOST = "http://localhost:21002"


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller("shortest_queue")
    yield made
    made.close()


def ask(controller: Controller, **params: object) -> list[dict]:
    return list(read_frames(controller.worker_api_generate_stream({"prompt": "p", **params})))


# ---- registration and choice ----


def test_a_worker_registers_with_the_status_it_sends_or_the_one_it_is_asked_for(
    controller: Controller,
) -> None:
    assert controller.register_worker(HOST, False, status("a", "b", queue_length=2))
    assert controller.worker_info[HOST] == WorkerInfo(
        ["a", "b"], 1, 2, False, controller.worker_info[HOST].last_heart_beat
    )
    with running(Worker("c").app) as address:
        assert controller.register_worker(address, True, None)
        assert controller.worker_info[address].model_names == ["c"]
    assert controller.list_models() == ["a", "b", "c"]
    assert not controller.register_worker(f"http://127.0.0.1:{free_port()}", True, None)


@pytest.mark.parametrize(
    "wrong",
    [
        [1],
        "text",
        {"model_names": "m", "speed": 1, "queue_length": 0},
        {"model_names": [], "speed": 1, "queue_length": 0},
        {"model_names": [1], "speed": 1, "queue_length": 0},
        {"model_names": ["m"] * 65, "speed": 1, "queue_length": 0},
        {"model_names": ["m"], "speed": 0, "queue_length": 0},
        {"model_names": ["m"], "speed": "1", "queue_length": 0},
        {"model_names": ["m"], "speed": float("nan"), "queue_length": 0},
        {"model_names": ["m"], "speed": float("inf"), "queue_length": 0},
        {"model_names": ["m"], "speed": 10**400, "queue_length": 0},
        {"model_names": ["m"], "speed": 1, "queue_length": -1},
        {"model_names": ["m"], "speed": 1, "queue_length": 1.5},
        {"model_names": ["m"]},
    ],
)
def test_a_malformed_status_is_refused(controller: Controller, wrong: object) -> None:
    with pytest.raises(ServeError) as caught:
        controller.register_worker(HOST, True, wrong)  # type: ignore[arg-type]
    assert caught.value.status == 400 and controller.worker_info == {}


def test_the_list_of_workers_has_an_end() -> None:
    controller = Controller("lottery", max_workers=2)
    for port in (1, 2, 1):
        controller.register_worker(f"http://localhost:{port}", True, status("m"))
    with pytest.raises(ServeError, match="too many workers"):
        controller.register_worker("http://localhost:3", True, status("m"))
    controller.close()


def test_the_shortest_queue_for_its_speed_is_chosen(controller: Controller) -> None:
    controller.register_worker("http://localhost:1", True, status("m", speed=1))
    controller.register_worker("http://localhost:2", True, status("m", speed=4, queue_length=1))
    controller.register_worker("http://localhost:3", True, status("other"))
    chosen = [controller.get_worker_address("m").rpartition(":")[2] for _ in range(6)]
    assert chosen == ["1", "2", "2", "2", "1", "2"]
    assert controller.get_worker_address("missing") == ""


def test_the_lottery_draws_by_speed() -> None:
    controller = Controller("lottery")
    controller.register_worker("http://localhost:1", True, status("m", speed=1))
    controller.register_worker("http://localhost:2", True, status("m", speed=3))
    random.seed(0)
    drawn = Counter(controller.get_worker_address("m") for _ in range(4000))
    assert 2800 < drawn["http://localhost:2"] < 3200
    controller.close()


def test_names_of_dispatch_methods() -> None:
    assert DispatchMethod.from_str("lottery") is DispatchMethod.LOTTERY
    assert DispatchMethod.from_str("shortest_queue") is DispatchMethod.SHORTEST_QUEUE
    with pytest.raises(UserError, match="'longest'.*lottery or shortest_queue"):
        DispatchMethod.from_str("longest")


# ---- heart beats ----


def test_a_heart_beat_tells_an_unknown_worker_to_register(controller: Controller) -> None:
    assert not controller.receive_heart_beat(HOST, 0)
    controller.register_worker(HOST, True, status("m"))
    assert controller.receive_heart_beat(HOST + "/", 7) and controller.worker_info[HOST].queue_length == 7


def test_workers_without_a_heart_beat_are_dropped(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.register_worker("http://localhost:1", True, status("a"))
    controller.register_worker("http://localhost:2", True, status("b"))
    controller.register_worker("http://localhost:3", False, status("c"))
    now = time.time() + CONTROLLER_HEART_BEAT_EXPIRATION + 1
    monkeypatch.setattr(time, "time", lambda: now)
    controller.receive_heart_beat("http://localhost:2", 0)
    controller.remove_stable_workers_by_expiration()
    assert controller.list_models() == ["b", "c"]


def test_refreshing_drops_the_dead_and_reads_the_living_again(controller: Controller) -> None:
    worker = Worker("before")
    with running(worker.app) as address:
        controller.register_worker(address, True, None)
        controller.register_worker(f"http://127.0.0.1:{free_port()}", False, status("dead"))
        worker.models = ("after",)
        controller.refresh_all_workers()
        assert controller.list_models() == ["after"] and list(controller.worker_info) == [address]
        assert controller.worker_api_get_status() == {
            "model_names": ["after"], "speed": 1, "queue_length": 0
        }  # fmt: skip


# ---- relaying ----


def test_an_answer_is_relayed_as_the_worker_gave_it(controller: Controller) -> None:
    worker = Worker("m")
    with running(worker.app) as address:
        controller.register_worker(address, True, None)
        frames = ask(controller, model="m", prompt="count", images=["x"], stop="</s>")
    assert [one["text"] for one in frames] == ["count 0", "count 0 1", "count 0 1 2"]
    assert {one["error_code"] for one in frames} == {0}
    assert worker.params == [{"prompt": "count", "model": "m", "images": ["x"], "stop": "</s>"}]


def test_a_model_that_nobody_has_ends_in_code_2(controller: Controller) -> None:
    (only,) = ask(controller, model="m")
    assert only["error_code"] == 2 and only["error"]["code"] == "no_worker" and "'m'" in only["text"]
    expected = {"message", "type", "param", "code", "request_id", "status", "retry_after_s"}
    assert expected == set(only["error"])


def test_a_worker_that_breaks_off_ends_in_code_3_after_what_it_gave(controller: Controller) -> None:
    with running(Worker("m", n=5, break_after=2).app) as address:
        controller.register_worker(address, True, None)
        *given, last = ask(controller, model="m")
    assert [one["text"] for one in given] == ["p 0", "p 0 1"]
    assert last["error_code"] == 3 and last["error"]["code"] == "worker_gone"


def test_a_dead_worker_costs_no_request_while_another_lives(controller: Controller) -> None:
    with running(Worker("m", n=1).app) as address:
        controller.register_worker(f"http://127.0.0.1:{free_port()}", True, status("m"))
        controller.register_worker(address, True, status("m", queue_length=5))
        assert [one["text"] for one in ask(controller, model="m")] == ["p 0"]
        assert list(controller.worker_info) == [address]
    (only,) = ask(controller, model="m")
    assert only["error_code"] == 2 and "could not be reached" in only["text"]


# ---- over HTTP ----


def test_the_endpoints_answer_as_the_reference_s(controller: Controller) -> None:
    worker = Worker("m")
    with (
        running(guard(create_app(lambda: controller), api_key=None)) as address,
        running(worker.app) as at,
        httpx2.Client(base_url=address) as client,
    ):
        known = {"worker_name": at, "check_heart_beat": True, "worker_status": status("m")}
        reply = client.post("/register_worker", json=known)
        assert reply.status_code == 200 and reply.json() is None
        assert client.post("/refresh_all_workers").json() is None
        assert client.post("/list_models").json() == {"models": ["m"], "messages": []}
        assert client.post("/get_worker_address", json={"model": "m"}).json() == {"address": at}
        assert client.post("/get_worker_address", json={"model": "n"}).json() == {"address": ""}
        beat = {"worker_name": at, "queue_length": 0}
        assert client.post("/receive_heart_beat", json=beat).json() == {"exist": True}
        assert client.post("/worker_get_status").json() == status("m")
        raw = client.post("/worker_generate_stream", json={"model": "m", "prompt": "p"}).content
        assert raw.count(b"\0") == 3 and raw.endswith(b'{"text": "p 0 1 2", "error_code": 0}\0')
        assert client.get("/health").json() == {"status": "ok", "models": ["m"]}


@pytest.mark.parametrize(
    ("path", "content", "code"),
    [
        ("/register_worker", {"worker_name": "http://10.0.0.1", "worker_status": status("m")}, 403),
        ("/register_worker", {"check_heart_beat": True}, 400),
        ("/register_worker", {"worker_name": HOST, "worker_status": {"model_names": []}}, 400),
        ("/receive_heart_beat", {"worker_name": HOST, "queue_length": "1"}, 400),
        ("/get_worker_address", {"model": 3}, 400),
        ("/get_worker_address", [1], 400),
        ("/worker_generate_stream", "text", 400),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(
    controller: Controller, path: str, content: object, code: int
) -> None:
    client = TestClient(guard(create_app(lambda: controller), api_key=None), base_url="http://localhost")
    reply = client.post(path, json=content)
    assert reply.status_code == code and reply.json()["error"]["message"]
    assert reply.headers["x-request-id"] and reply.headers["x-should-retry"] == "false"


def test_cve_2024_9309_a_request_cannot_name_an_address(controller: Controller) -> None:
    """No field of a request leads the controller to an address that did not register."""
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}"
        names = ("model", "worker_addr", "worker_address", "worker_name", "address", "url")
        (only,) = ask(controller, **dict.fromkeys(names, url))
        assert only["error_code"] == 2
        with pytest.raises(TimeoutError):
            trap.accept()


def test_cve_2024_10044_registering_takes_the_key(controller: Controller) -> None:
    key = "k" * 16
    body = {"worker_name": HOST, "check_heart_beat": True, "worker_status": status("m")}
    with (
        running(guard(create_app(lambda: controller), api_key=key)) as address,
        httpx2.Client(base_url=address) as client,
    ):
        paths = ("register_worker", "refresh_all_workers", "list_models", "worker_generate_stream", "x")
        for path in paths:
            for headers in ({}, {"Authorization": "Bearer wrong-key-here"}, {"Authorization": key}):
                assert client.post(f"/{path}", json=body, headers=headers).status_code == 401
        assert client.get("/health").status_code == 401
        assert controller.worker_info == {}
        right = {"Authorization": f"Bearer {key}"}
        assert client.post("/register_worker", json=body, headers=right).status_code == 200
        assert list(controller.worker_info) == [HOST]


def test_the_key_goes_to_workers_and_redirects_are_not_followed() -> None:
    async def lead_away(request: Request) -> Response:
        return Response(status_code=307, headers={"location": f"{other}/worker_generate_stream"})

    trap, worker = Worker("m"), Worker("m")
    leading = Starlette(routes=[Route("/worker_generate_stream", lead_away, methods=["POST"])])
    controller = Controller("shortest_queue", api_key="k" * 16)
    with running(trap.app) as other, running(leading) as address, running(worker.app) as honest:
        controller.register_worker(address, True, status("m"))
        (only,) = ask(controller, model="m")
        assert only["error_code"] == 3 and trap.headers == []
        controller.register_worker(honest, True, None)
        assert worker.headers[0]["authorization"] == f"Bearer {'k' * 16}"
    controller.close()


def test_a_client_that_goes_away_ends_the_worker_s_answer(controller: Controller) -> None:
    worker = Worker("m", n=1000, wait_s=0.02)
    with (
        running(worker.app) as at,
        running(guard(create_app(lambda: controller), api_key=None)) as address,
        httpx2.Client(base_url=address) as client,
    ):
        controller.register_worker(at, True, status("m"))
        body = {"model": "m", "prompt": "p"}
        with client.stream("POST", "/worker_generate_stream", json=body) as stream:
            next(stream.iter_raw())
        wait_until(worker.left_early.is_set, 10)


def test_cve_2026_6607_a_worker_that_hangs_does_not_stop_heart_beats(controller: Controller) -> None:
    worker = Worker("m")
    with (
        running(worker.app) as at,
        running(guard(create_app(lambda: controller), api_key=None)) as address,
        httpx2.Client(base_url=address, timeout=3) as client,
    ):
        controller.register_worker(at, True, status("m"))
        worker.stuck.set()
        refresh = threading.Thread(target=lambda: httpx2.post(f"{address}/refresh_all_workers", timeout=30))
        refresh.start()
        wait_until(lambda: worker.headers)
        for _ in range(20):
            reply = client.post("/receive_heart_beat", json={"worker_name": at, "queue_length": 0})
            assert reply.json() == {"exist": True}
        assert refresh.is_alive()
        worker.stuck.clear()
        refresh.join(20)


# ---- the program ----


def test_the_module_has_the_reference_s_app() -> None:
    client = TestClient(llava.serve.controller.app, base_url="http://localhost")
    assert client.post("/list_models").json()["error"]["code"] == "no_controller"
    llava.serve.controller.controller = Controller("lottery")
    try:
        assert client.post("/list_models").json() == {"models": [], "messages": []}
    finally:
        llava.serve.controller.controller.close()
        llava.serve.controller.controller = None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "needs a key"),
        (["--allow-worker", "http://x"], "--allow-worker"),
        (["--api-key", "short"], "8 to 512"),
        (["--port", "99999"], "--port 99999"),
        (["--host", "no.such.host.invalid", "--api-key", "k" * 16], "cannot listen"),
    ],
)
def test_a_wrong_flag_ends_in_one_line(flags: list[str], words: str) -> None:
    command = [sys.executable, "-m", "llava.serve.controller", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and words in ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_the_documented_command_starts_and_ends() -> None:
    port = free_port()
    command = [sys.executable, "-m", "llava.serve.controller", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert any("listening at" in line for line in process.stderr)
        reply = httpx2.post(f"http://127.0.0.1:{port}/list_models", timeout=20)
        assert reply.json() == {"models": [], "messages": []}
        process.terminate()
        assert process.wait(20) in (0, -15)
    finally:
        process.kill()
        process.stderr.close()


MALFORMED = {
    "list": b"[1]",
    "empty": b"",
    "no json": b"<html>",
    "no names": b'{"model_names": [], "speed": 1, "queue_length": 0}',
    "no speed": b'{"model_names": ["m"], "queue_length": 0}',
    "NaN": b'{"model_names": ["m"], "speed": NaN, "queue_length": 0}',
    "infinity": b'{"model_names": ["m"], "speed": 1e999, "queue_length": 0}',
    "huge": b'{"model_names": ["m"], "speed": 1' + b"0" * 400 + b', "queue_length": 0}',
    "queue": b'{"model_names": ["m"], "speed": 1, "queue_length": -1}',
    "surrogate": b'{"model_names": ["\\ud800"], "speed": 1, "queue_length": 0}',
    "deep": b"[" * 200_000,
    "no utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_a_worker_with_a_malformed_answer_hides_no_other(controller: Controller, answer: bytes) -> None:
    async def tell(request: Request) -> Response:
        return Response(answer, media_type="application/json")

    bad = Starlette(routes=[Route("/worker_get_status", tell, methods=["POST"])])
    client = TestClient(create_app(lambda: controller), base_url="http://localhost")
    with running(bad) as address, running(Worker("good").app) as honest:
        controller.register_worker(address, True, status("m"))
        controller.register_worker(honest, True, None)
        assert client.post("/worker_get_status").json() == status("good")
        assert client.post("/refresh_all_workers").status_code == 200
    assert controller.list_models() == ["good"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize(
    "path", ["/register_worker", "/get_worker_address", "/receive_heart_beat", "/worker_generate_stream"]
)
def test_a_body_says_that_it_is_json(controller: Controller, path: str, kind: str | None) -> None:
    client = TestClient(create_app(lambda: controller), base_url="http://localhost")
    body = b'{"worker_name": "http://localhost:1", "queue_length": 0, "model": "m", "check_heart_beat": true}'
    reply = client.post(path, content=body, headers={} if kind is None else {"content-type": kind})
    assert reply.status_code == 415 and reply.json()["error"]["code"] == "unsupported_media_type"
    assert controller.worker_info == {}
    right = client.post(path, content=body, headers={"content-type": "application/json; charset=utf-8"})
    assert right.status_code != 415
