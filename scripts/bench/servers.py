"""Starts a controller, workers and the server in front of them as processes, for measurements."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2


class Servers:
    """A controller, workers and the server in front of it; each a process of this machine."""

    def __init__(self, model_path: str, device: str, logs: Path, *, workers: int, running: int) -> None:
        ports = free_ports(workers + 2)
        self.controller = f"http://127.0.0.1:{ports[0]}"
        self.url = f"http://127.0.0.1:{ports[1]}"
        self.worker_ports = ports[2:]
        self.logs = logs
        self.name = "loaded"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.flags = ["--model-path", model_path, "--device", device]
        self.running = running

    def start(self) -> None:
        """Start everything and wait until it answers."""
        self._start(
            "controller", "controller", "--host", "127.0.0.1", "--port", self.controller.rpartition(":")[2]
        )
        front = ["--controller-address", self.controller, "--port", self.url.rpartition(":")[2]]
        self._start("front", "openai_api", *front, "--log-level", "warning")
        for number in range(len(self.worker_ports)):
            self.start_worker(number)
        for port in self.worker_ports:
            wait_until(lambda port=port: self.queue_of(port) is not None, 180)
        wait_until(lambda: self.models() == [self.name], 60)

    def start_worker(self, number: int) -> None:
        """Start a worker, again if it has been killed."""
        port = str(self.worker_ports[number])
        address = f"http://127.0.0.1:{port}"
        where = ["--host", "127.0.0.1", "--port", port, "--worker-address", address]
        more = ["--controller-address", self.controller, "--model-name", self.name]
        limit = ["--limit-model-concurrency", str(self.running)]
        self._start(f"worker-{number}", "model_worker", *where, *more, *limit, *self.flags)

    def _start(self, name: str, module: str, *flags: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "LLAVA_API_KEY"}
        # glibc keeps what threads have freed in pools of its own for each of them; see docs/serving.md
        environment.setdefault("MALLOC_ARENA_MAX", "2")
        with (self.logs / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", f"llava.serve.{module}", *flags]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kill_worker(self, number: int) -> None:
        """End a worker with -9."""
        self.processes[f"worker-{number}"].kill()
        self.processes[f"worker-{number}"].wait()

    def stop(self) -> None:
        """End everything."""
        for one in self.processes.values():
            one.terminate()
        for one in self.processes.values():
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()

    def models(self) -> list[str]:
        """Return what the server in front lists; nothing while it does not answer."""
        try:
            return [one["id"] for one in httpx2.get(f"{self.url}/v1/models", timeout=5).json()["data"]]
        except (httpx2.HTTPError, ValueError, KeyError):
            return []

    def queue_of(self, port: int) -> int | None:
        """Return how many requests a worker has; None while it does not answer."""
        try:
            return httpx2.post(f"http://127.0.0.1:{port}/worker_get_status", timeout=5).json()["queue_length"]
        except (httpx2.HTTPError, ValueError, KeyError):
            return None

    def streams(self) -> float:
        """Return how many answers run in the server in front."""
        text = httpx2.get(f"{self.url}/metrics", timeout=10).text
        return float(
            next(one for one in text.splitlines() if one.startswith("llava_engine_running ")).split()[1]
        )


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens at."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until something holds; RuntimeError when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("a server did not get ready in time; its log says why")
        time.sleep(0.1)
    return True
