"""Starts trainings in one and in two processes, with a time limit that ends everything they started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warming import python

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
BIN = Path(sys.executable).parent
COMPILED = Path(os.environ["TORCH_EXTENSIONS_DIR"])  # set in tests/conftest.py; kept between runs


@dataclass(frozen=True)
class Training:
    """One run of train(): a name, and what stands behind train.py."""

    name: str
    argv: list[str]


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a child: this checkout, this interpreter's programs, one thread."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "WANDB_"))
    }
    own = {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "TORCH_EXTENSIONS_DIR": str(COMPILED),
    }
    return {**kept, **own, **more}


def run_group(command: Sequence[str], limit_s: float, **more: str) -> str:
    """Run a command; returns what it printed. Fails after limit_s or on an error, and ends all it started."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        for lock in COMPILED.glob("*/lock"):
            lock.unlink(missing_ok=True)  # of a compilation that was just ended: others would wait for it
        raise AssertionError(f"not done after {limit_s} s:\n{output[-6000:]}") from None
    assert process.returncode == 0, _what_went_wrong(output)
    return output


def _what_went_wrong(output: str) -> str:
    """Return the part of a launch's output from its first traceback on."""
    start = output.find("Traceback")
    return output[start : start + 6000] if start >= 0 else output[-6000:]


def launch(folder: Path, trainings: Sequence[Training], *, processes: int, limit_s: int) -> None:
    """Do trainings one after another in the same processes; reports go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = folder / f"spec-{trainings[0].name}.json"
    runs = [{"name": one.name, "argv": one.argv} for one in trainings]
    spec.write_text(json.dumps({"folder": str(folder), "limit_s": limit_s, "runs": runs}))
    launcher = [python()]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--master_port", str(free_port())]
    run_group([*launcher, str(WORKER), str(spec)], limit_s + 30)


def read_reports(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Read what the processes of a run wrote, first process first."""
    for file in sorted(folder.glob(f"{name}-[0-9].json")):
        yield json.loads(file.read_text())
