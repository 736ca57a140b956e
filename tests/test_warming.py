"""The warm interpreter of tests/warming.py behaves as a fresh one."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm.server import limits
from warming import FORKS, log, python, same_variables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FORKS, reason="processes are forked on Linux alone"),
]

TELLS = """
import atexit, json, os, sys, threading
print(json.dumps([sys.argv, sys.path[0], __name__, os.getcwd(), os.environ.get("OWN"), sys.flags.utf8_mode]))
print(sys.stdin.read().upper(), "é", file=sys.stderr)
atexit.register(print, "the last line")
threading.Timer(0.2, print, ["a thread's line"]).start()
"""
WAYS_TO_END = {
    "zero": "",
    "code": "sys.exit(7)",
    "message": "sys.exit('no such thing')",
    "error": "raise KeyError('k')",
    "at once": "os._exit(9)",
    "signal": "os.kill(os.getpid(), 15)",
}


def both(words: list[str], folder: Path, **more: str) -> list[subprocess.CompletedProcess[str]]:
    """Run the same with both."""
    environment = {**os.environ, "OWN": "own", **more}
    return [
        subprocess.run(
            [one, *words], cwd=folder, env=environment, input="typed", capture_output=True, text=True
        )
        for one in (python(), sys.executable)
    ]


@pytest.mark.parametrize("end", WAYS_TO_END)
@pytest.mark.parametrize("kind", ["script", "module", "code"])
def test_a_program_runs_and_ends_alike(kind: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(f"{TELLS}\n{WAYS_TO_END[end]}\n")
    words = {"script": ["told.py"], "module": ["-m", "told"], "code": ["-c", f"{TELLS}\n{WAYS_TO_END[end]}"]}
    warm, fresh = both([*words[kind], "--flag", "a b"], tmp_path)
    assert warm.returncode == fresh.returncode
    assert warm.stdout == fresh.stdout and "own" in warm.stdout
    assert warm.stderr.splitlines()[:1] == fresh.stderr.splitlines()[:1] == ["TYPED é"]
    assert warm.stderr.splitlines()[-1] == fresh.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_a_signal_reaches_the_program(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    process = subprocess.Popen([python(), "-c", code], stderr=subprocess.DEVNULL)
    wait_until(lambda: mark.exists() and mark.read_text() != "")
    process.send_signal(signal.Signals[name])
    assert process.wait(20) == -signal.Signals[name]
    wait_until(lambda: not Path("/proc", mark.read_text()).exists())


def test_it_has_imported_what_takes_time(tmp_path: Path) -> None:
    warm, fresh = both(["-c", "import sys; print('torch' in sys.modules)"], tmp_path)
    assert (warm.stdout, fresh.stdout) == ("True\n", "False\n"), log()


def test_a_library_that_sets_a_variable_leaves_the_next_test_the_warm_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    with same_variables():
        os.environ.update(TOKENIZERS_PARALLELISM="0", HF_HUB_OTHER="True")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert "HF_HUB_OTHER" not in os.environ
    test_it_has_imported_what_takes_time(tmp_path)


def test_a_client_that_is_killed_at_once_ends_no_server(tmp_path: Path) -> None:
    before = python()
    request = {
        "words": ["-c", f"import time; time.sleep(1); open({str(tmp_path / 'mark')!r}, 'w')"],
        "folder": str(tmp_path),
        "umask": 0o22,
        "environment": dict(os.environ),
        "limits": limits(),
        "python": before,
    }
    text = json.dumps(request).encode()
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(Path(before).with_name("socket")))
            streams = array.array("i", (0, 1, 2))
            client.sendmsg(
                [len(text).to_bytes(8, "big"), text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
            )
    test_it_has_imported_what_takes_time(tmp_path)
    time.sleep(1.5)
    assert not (tmp_path / "mark").exists()  # its program has been killed as well


def test_what_only_a_fresh_interpreter_can_is_left_to_it(tmp_path: Path) -> None:
    told = "import os, sys; print(sys.executable, os.environ.get('HF_HUB_OFFLINE'), sys.flags.optimize)"
    for words, more in ((["-O", "-c", told], {}), (["-c", told], {"HF_HUB_OFFLINE": "0"})):
        warm, fresh = both(words, tmp_path, **more)
        assert warm.stdout == fresh.stdout and sys.executable in warm.stdout


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
