"""The commands of docs/web_page.md: each starts, shows its page, and ends when it is told to."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from running import free_port, running, wait_until
from warming import python

from llava.serve.controller import Controller
from llava.serve.gradio_web_server import build_parser
from llava.serve.workers.controller_app import create_app

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINTS = ROOT / "tests" / "data" / "checkpoints"
NAME = "llava-tiny-v1.5"
PAGE = (ROOT / "docs" / "web_page.md").read_text()
COMMANDS = re.findall(r"<!-- quickstart -->\n```bash\n(.*?)\n```", PAGE, flags=re.DOTALL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    """Give a function that starts a documented command and returns its process and where its page is."""
    processes: list[subprocess.Popen[str]] = []

    def begin(line: str, *more: str) -> tuple[subprocess.Popen[str], str]:
        line = line.replace("runs/quickstart/llava-digits", NAME)
        words = [python(), *shlex.split(line)[1:], "--port", str(free_port()), *more]
        words += ["--log-dir", str(tmp_path)]
        process = subprocess.Popen(
            words, cwd=CHECKPOINTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        found = re.fullmatch(r"The page is at (\S+)\n", process.stdout.readline())
        assert found, process.communicate(timeout=10)[1]
        return process, found[1]

    yield begin
    for one in processes:
        one.kill()
        one.communicate()


def ends(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_one_process_has_page_and_api(start) -> None:
    process, url = start(COMMANDS[0])
    wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200)
    assert "LLaVA" in httpx2.get(url).text
    assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == NAME
    missing = httpx2.get(f"{url}/v1/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    for header in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert httpx2.get(f"{url}/config", headers=header).json()["error"]["code"] == "foreign_origin"
    assert httpx2.get(url, headers={"Host": "evil.example"}).status_code == 403
    ends(process)


@pytest.mark.slow
def test_the_page_in_front_of_a_controller(start) -> None:
    controller = Controller("shortest_queue")
    with running(create_app(lambda: controller)) as address:
        line = COMMANDS[1].replace("http://localhost:10000", address)
        process, url = start(line)
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200)
        policy = httpx2.get(url).headers["content-security-policy"]
        assert "default-src 'self'" in policy and "http" not in policy
        ends(process)


def test_the_flags_of_the_page_are_those_of_the_program() -> None:
    table = PAGE.partition("## Flags")[2].partition("## Using it")[0]
    named = set(re.findall(r"`(--[\w-]+)`", table))
    assert named == set(build_parser()._option_string_actions) - {"-h", "--help"}


@pytest.mark.parametrize(
    "line",
    [
        "--controller http://localhost:10000 --model-list-mode reload",
        "--host 0.0.0.0 --port 1 --controller-url http://a --concurrency-count 8 --share --embed --moderate",
    ],
)
def test_command_lines_of_the_reference_are_understood(line: str) -> None:
    args = build_parser().parse_args(line.split())
    assert args.controller_url.startswith("http://") and args.model_list_mode in ("once", "reload")
