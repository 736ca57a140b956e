"""The warm interpreter of tests/warming.py behaves as a fresh one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warming import FORKS, python

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
    assert (warm.stdout, fresh.stdout) == ("True\n", "False\n")


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
