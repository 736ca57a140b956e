"""Kills training runs at random moments and lets them go on; compares them with runs that nobody disturbed.

python kill_driver.py SPEC.json, with {"modes": {name: command line without --output_dir}, "folder": where to
work, "kills": of each mode, "seed": of the moments}. Writes report.json there. Imports the library once and
forks a process for each run.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import llava.train.train as train_module
from llava.model.checkpoints.files import load_weights, read_tensors
from llava.train.checkpointing.folders import find_checkpoints
from llava.train.llava_trainer import LLaVATrainer

WEIGHTS = ("mm_projector.bin", "model.safetensors", "adapter_model.safetensors", "non_lora_trainables.bin")
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "run_memory_0.json")
# parts of names of files that are saved, and the events of Python that open or change files
SAVED = ("/tmp-", "/checkpoint-", "trainer_state.json")
FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def _watch_files(count_file: Path, die_at: int) -> None:
    """Count what this process does to files that are being saved; at event `die_at` it kills itself."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in FILE_EVENTS or not any(mark in str(arguments[:2]) for mark in SAVED):
            return
        reading = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not reading or "/tmp-" in str(arguments[0]):  # there, files are opened to be written to the disk
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)

    def tell() -> None:
        count_file.write_text(str(seen))

    train_module.tell_count = tell  # type: ignore[attr-defined]


def start(argv: list[str], out: Path, *, die_at: int = 0) -> int:
    """Fork a process that trains; its losses go to OUT.losses. Returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        # torch makes a new thread pool after a fork, at the first call that needs it; when several threads
        # of the loader come at once, some find none ("Invalid thread pool!"). Here it is one thread.
        torch.set_num_threads(torch.get_num_threads())
        log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        losses = os.open(f"{out}.losses", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        step = LLaVATrainer.training_step

        counts: dict[int, int] = {}  # micro-batches of each step

        def noting(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = step(self, *args, **kwargs)
            number = self.state.global_step + 1
            counts[number] = counts.get(number, 0) + 1
            os.write(losses, f"{number}.{counts[number]} {float(loss).hex()}\n".encode())
            return loss

        LLaVATrainer.training_step = noting  # type: ignore[method-assign]
        _watch_files(Path(f"{out}.events"), die_at)
        sys.argv = ["train.py", *argv, "--output_dir", str(out)]
        train_module.train()
        train_module.tell_count()  # type: ignore[attr-defined]
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _ended(process: int, after_s: float | None) -> int:
    """Wait for a process, or kill it after a time; returns its signal or 0. Raises RuntimeError."""
    if after_s is not None:
        limit = time.monotonic() + after_s
        while time.monotonic() < limit:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                return _signal(status)
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
    return _signal(os.waitpid(process, 0)[1])


def _signal(status: int) -> int:
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"a run ended with status {os.WEXITSTATUS(status)}")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


# ---- comparing ----


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in WEIGHTS:
        if (folder / name).exists():
            found.update({f"{name}:{key}": value for key, value in read_tensors(folder / name).items()})
    return found or load_weights(folder)


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def _losses(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in Path(f"{out}.losses").read_text().splitlines():
        step, value = line.split()
        found.setdefault(step, set()).add(value)
    return found


def _logged(out: Path) -> list[Any]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [
        [one["step"], one["loss"], one["grad_norm"], one["learning_rate"]] for one in history if "loss" in one
    ]


def _check_checkpoints(whole: Path, out: Path) -> list[str]:
    """Name the checkpoints that pass for whole and differ from those of the undisturbed run."""
    wrong = []
    for one in find_checkpoints(out):
        other = whole / one.path.name
        if one.state == "incomplete":
            wrong.append(f"{one.path.name}: {one.reason}")
        elif not _same(_tensors(one.path), _tensors(other)):
            wrong.append(f"{one.path.name}: other weights")
        elif one.state == "complete" and not all((one.path / name).stat().st_size for name in STATES):
            wrong.append(f"{one.path.name}: no training state")
    return wrong


# ---- one mode ----


def run_mode(name: str, argv: list[str], folder: Path, kills: int, moments: random.Random) -> dict[str, Any]:
    """Run a mode undisturbed, then killed `kills` times; returns what was seen."""
    whole, out = folder / f"{name}-whole", folder / f"{name}-killed"
    began = time.monotonic()
    _ended(start(argv, whole), None)
    duration = time.monotonic() - began
    events = int(Path(f"{whole}.events").read_text())
    report: dict[str, Any] = {"events": events, "duration": duration, "kills": [], "wrong": []}
    tries = 0
    while len(report["kills"]) < kills and tries < 4 * kills:
        tries += 1
        saving = tries % 2 == 0
        if saving:  # at an event within the next saves, so that the run gets ahead between two kills
            killed = _ended(start(argv, out, die_at=moments.randint(1, max(2, events // 3))), None)
        else:
            killed = _ended(start(argv, out), moments.uniform(0.2, 0.9) * duration)
        if not killed:  # it came to its end before its time: once more, from a middle checkpoint
            _forget_the_end(out)
            continue
        report["wrong"] += _check_checkpoints(whole, out)
        left = [path.name for path in out.glob("tmp-*")] if out.exists() else []
        report["kills"].append({"planned": "saving" if saving else "any time", "left": left})
    _ended(start(argv, out), None)
    expected = _losses(whole)
    report["steps"] = len(expected)
    report["seen_twice"] = len(Path(f"{out}.losses").read_text().splitlines()) - len(expected)
    report["same_losses"] = _losses(out) == expected and all(len(one) == 1 for one in expected.values())
    report["same_log"] = _logged(out) == _logged(whole)
    report["same_weights"] = _same(_tensors(out), _tensors(whole))
    report["left_over"] = [path.name for path in out.glob("tmp-*")]
    report["seconds"] = time.monotonic() - began
    return report


def _forget_the_end(out: Path) -> None:
    import shutil

    found = find_checkpoints(out)
    for one in found[len(found) // 2 :]:
        shutil.rmtree(one.path)


def main() -> None:
    """Run all modes of a spec."""
    import bitsandbytes  # noqa: F401  # imported once, before any fork
    import peft  # noqa: F401

    gc.freeze()  # the forked processes do not look at all modules when they collect
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    moments = random.Random(spec["seed"])
    report = {
        name: run_mode(name, argv, folder, spec["kills"], moments) for name, argv in spec["modes"].items()
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
