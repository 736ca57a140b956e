"""`python()`: an interpreter for programs of the tests, which need not import torch and transformers again.

It behaves as `sys.executable` (tests/test_warming.py compares them), but a program starts in a tenth of the
time: tests/warm/server.py has imported all that already, and forks. Tests of what an import costs or prints
use `sys.executable`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from warm.server import at_import

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "warm"
FOLDER = "LLAVA_TESTS_WARM"  # names the folder of a run of pytest, for all its workers
FORKS = sys.platform == "linux"


def make_folder() -> None:
    """Make the folder of a run that this process owns; the server is started when it is first needed."""
    folder = tempfile.mkdtemp(prefix="llava-warm-")
    Path(folder, "owner").write_text(str(os.getpid()))
    os.environ[FOLDER] = folder


def remove_folder() -> None:
    """Remove it; the server ends with this process."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def python() -> str:
    """Return the path of the interpreter; `sys.executable` where processes cannot be forked."""
    if not FORKS or FOLDER not in os.environ:
        return sys.executable
    folder = Path(os.environ[FOLDER])
    program = folder / "python"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _start(folder)
            text = (HERE / "client.py").read_text().replace("@SOCKET@", str(folder / "socket"))
            text = text.replace("@INTERPRETER@", sys.executable)
            program.write_text(f"#!{sys.executable} -SI\n{text}")
            program.chmod(0o755)
    return str(program)


def log() -> str:
    """Return what the server has printed: among it, each command that it left to the interpreter, and why."""
    return Path(os.environ[FOLDER], "log").read_text()


@contextlib.contextmanager
def same_variables() -> Iterator[None]:
    """Put back the variables that are read at import; a library that sets one would end the forking.

    transformers sets TOKENIZERS_PARALLELISM where a model is compiled.
    """
    before = at_import(dict(os.environ))
    yield
    for name in at_import(dict(os.environ)).keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _start(folder: Path) -> None:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    owner = (folder / "owner").read_text()
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(folder / "socket"), owner],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not (folder / "socket").exists() and server.poll() is None:
        time.sleep(0.02)
