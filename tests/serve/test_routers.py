"""Routers of vLLM and SGLang in front of two servers: images, streams, and one server killed with -9."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from asking import image, text, user
from running import free_port, wait_until
from warming import python

PAGE = Path(__file__).parents[2] / "docs" / "beyond_one_machine.md"
PROGRAMS = {"vllm-router": "vllm-router", "sglang-router": "smg"}
INSTALLED = {name: found for name, program in PROGRAMS.items() if (found := shutil.which(program))}
HERE = Path(sys.executable).parent
for name, program in PROGRAMS.items():
    if (HERE / program).exists():
        INSTALLED.setdefault(name, str(HERE / program))


def documented(program: str) -> list[str]:
    """Return the words of the page's command that starts a router."""
    (line,) = re.findall(rf"^{program} .*$", PAGE.read_text(), flags=re.MULTILINE)
    return shlex.split(line)[1:]


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, command: list[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that ends with the test."""
    process = subprocess.Popen(command, stdout=stack.enter_context(log.open("wb")), stderr=-2, **options)
    stack.callback(process.wait, 20)
    stack.callback(process.kill)
    return process


def answers(url: str, path: str) -> bool:
    try:
        return httpx2.get(f"{url}{path}", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def ask(client: openai.OpenAI, color: str = "red", **fields: Any) -> Any:
    question: Any = [user(image(color), text("What?"))]
    fields = {"max_tokens": 8, "temperature": 0, **fields}
    return client.chat.completions.create(model="tiny", messages=question, **fields)


def asked_of(url: str) -> float:
    """Return how many answers a server has given."""
    line = re.search(
        r'llava_engine_requests_total\{reason="(?:stop|length)"\} (\S+)', httpx2.get(f"{url}/metrics").text
    )
    return float(line[1]) if line else 0.0


@pytest.mark.slow
@pytest.mark.skipif(
    not INSTALLED, reason="neither vllm-router nor sglang-router is installed (Linux on x86-64 has them)"
)
def test_requests_go_on_behind_a_router_when_a_server_is_killed(
    processes: ExitStack, checkpoints: Path, tmp_path: Path
) -> None:
    servers = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    command = [
        python(),
        "-m",
        "llava.serve.openai_api",
        "--model-path",
        "llava-tiny-v1.5",
        "--device",
        "cpu",
    ]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--port"]
    running = [
        start(processes, [*command, url.rpartition(":")[2]], tmp_path / f"{number}.log", cwd=checkpoints)
        for number, url in enumerate(servers)
    ]
    for url in servers:
        wait_until(lambda url=url: answers(url, "/health"), 180)
    expected = ask(openai.OpenAI(base_url=f"{servers[0]}/v1", api_key="none")).choices[0].message.content
    clients = {}
    for name, program in INSTALLED.items():
        words = documented(PROGRAMS[name])
        first = words.index("--worker-urls") + 1
        port, numbers = free_port(), free_port()
        words[first : first + 2] = servers
        words[words.index("--port") + 1] = str(port)
        words[words.index("--prometheus-port") + 1] = str(numbers)
        start(processes, [program, *words], tmp_path / f"{name}.log")
        wait_until(lambda port=port: answers(f"http://127.0.0.1:{port}", "/v1/models"), 60)
        clients[name] = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
    for client in clients.values():
        before = [asked_of(url) for url in servers]
        for _ in range(2):
            assert ask(client).choices[0].message.content == expected
            pieces = [one.choices[0].delta.content or "" for one in ask(client, stream=True)]
            assert "".join(pieces) == expected and len(pieces) > 2
        assert all(asked_of(url) > count for url, count in zip(servers, before, strict=True))
    streams = [ask(client, stream=True, max_tokens=400) for client in clients.values() for _ in range(2)]
    running[1].send_signal(signal.SIGKILL)
    for stream in streams:  # those of the killed server end with an error, none hangs
        try:
            list(stream)
        except (openai.APIError, httpx2.HTTPError):
            continue
    for name, client in clients.items():
        found = [ask(client, color).choices[0].finish_reason for color in ("red", "blue", "green") * 2]
        assert all(found), name


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_the_page_starts_each_router_in_front_of_two_servers(program: str) -> None:
    words = documented(program)
    assert {"--worker-urls", "--port", "--prometheus-port", "--policy"} <= set(words)
