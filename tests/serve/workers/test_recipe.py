"""The three programs as documented, each in a process of its own; and what happens when one is killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from running import free_port, wait_until
from warming import python

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINTS = ROOT / "tests" / "data" / "checkpoints"  # each names its tower by a folder beside it
NAME = "llava-tiny-v1.5"


def documented() -> list[str]:
    """Return the three commands of docs/workers.md."""
    page = (ROOT / "docs" / "workers.md").read_text()
    found = re.findall(r"<!-- quickstart -->\n```bash\n(.*)\n```", page)
    assert len(found) == 3
    return found


class Recipe:
    """The documented commands with free ports and a tiny checkpoint."""

    def __init__(self) -> None:
        ports = {"10000": str(free_port()), "40000": str(free_port())}
        self.controller = f"http://localhost:{ports['10000']}"
        self.worker = f"http://localhost:{ports['40000']}"
        self.commands = []
        for line in documented():
            for written, port in ports.items():
                line = line.replace(written, port)
            line = line.replace("runs/quickstart/llava-digits", NAME).replace("llava-digits", NAME)
            self.commands.append([python(), *shlex.split(line)[1:]])
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, index: int) -> subprocess.Popen[bytes]:
        """Start a command of the page."""
        process = subprocess.Popen(self.commands[index], cwd=CHECKPOINTS, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def models(self) -> list[str]:
        """Ask the controller; an empty list while it is not there."""
        try:
            return httpx2.post(f"{self.controller}/list_models", timeout=5).json()["models"]
        except httpx2.HTTPError:
            return []

    def ask(self) -> subprocess.CompletedProcess[str]:
        """Run the third command."""
        return subprocess.run(self.commands[2], cwd=CHECKPOINTS, capture_output=True, text=True, timeout=120)


@pytest.fixture
def recipe() -> Iterator[Recipe]:
    made = Recipe()
    yield made
    for process in made.processes:
        process.kill()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_the_documented_recipe_runs_whatever_is_started_first(recipe: Recipe, first: int) -> None:
    recipe.start(first)
    recipe.start(1 - first)
    wait_until(lambda: recipe.models() == [NAME], 120)
    answer = recipe.ask()
    assert answer.returncode == 0 and "USER: Hello ASSISTANT: " in answer.stdout
    assert answer.stdout.rstrip("\n").rpartition("ASSISTANT: ")[2].strip()
    for process in recipe.processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(30) in (0, -signal.SIGTERM) for process in recipe.processes] == [True, True]


@pytest.mark.slow
def test_a_worker_killed_mid_answer_is_told_and_another_takes_over(recipe: Recipe) -> None:
    recipe.start(0)
    worker = recipe.start(1)
    wait_until(lambda: recipe.models() == [NAME], 120)
    body = {"model": NAME, "prompt": "Tell.", "temperature": 0, "max_new_tokens": 1024, "stop": None}
    chunks: list[bytes] = []

    def ask() -> None:
        with httpx2.stream(
            "POST", f"{recipe.controller}/worker_generate_stream", json=body, timeout=60
        ) as stream:
            chunks.extend(stream.iter_raw())

    os.kill(worker.pid, signal.SIGSTOP)  # it takes the request and says nothing
    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(1.0)
    assert asking.is_alive()
    worker.kill()
    asking.join(30)
    assert b'"error_code": 3' in b"".join(chunks)
    gone = recipe.ask()
    assert gone.returncode == 2 and gone.stderr.startswith("error: ") and "Traceback" not in gone.stderr
    recipe.start(1)
    wait_until(lambda: recipe.ask().returncode == 0, 120)
