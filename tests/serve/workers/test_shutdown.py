"""What the streams of a controller and a worker end with when their server is stopped."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any

import httpx2
import pytest
from fake_worker import Worker, status
from running import running, wait_until

from llava.serve.controller import Controller
from llava.serve.guard import guard
from llava.serve.workers.base import BaseWorker
from llava.serve.workers.base import create_app as worker_app
from llava.serve.workers.controller_app import create_app
from llava.serve.workers.frames import frame, read_frames


class Counting(BaseWorker):
    """A worker of this package without a model, which counts until nobody listens."""

    def __init__(self) -> None:
        super().__init__(None, "http://localhost:21002", "counting", ["m"])

    def generate_stream(self, params: Mapping[str, Any]) -> Generator[bytes, None, None]:
        for number in itertools.count():
            time.sleep(0.02)
            yield frame(f"p {number}")

    def get_queue_length(self) -> int:
        return 0


@pytest.mark.parametrize("stopped", ["controller", "worker"])
def test_a_shutdown_ends_a_stream_with_a_frame_that_says_so(
    stopped: str, caplog: pytest.LogCaptureFixture
) -> None:
    controller = Controller("shortest_queue")
    endless, counting = Worker("m", n=10_000, wait_s=0.02), Counting()
    made = create_app(lambda: controller) if stopped == "controller" else worker_app(lambda: counting)
    got: list[bytes] = []

    def read(address: str) -> None:
        body = {"model": "m", "prompt": "p"}
        with httpx2.stream("POST", f"{address}/worker_generate_stream", json=body) as stream:
            for chunk in stream.iter_raw():
                got.append(chunk)

    with running(endless.app) as at:
        controller.register_worker(at, True, status("m"))
        with running(guard(made, api_key=None), drain_seconds=1) as address:
            reading = threading.Thread(target=read, args=(address,))
            reading.start()
            wait_until(lambda: got)  # the answer has begun
        reading.join(20)
    controller.close()
    last = list(read_frames(got))[-1]
    assert last["error_code"] == 3 and last["error"]["code"] == "shutting_down"
    assert last["error"]["request_id"].startswith("req_")
    assert not [one for one in caplog.records if one.exc_info]
