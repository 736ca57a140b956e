"""Steps of a quickstart: each runs once, and again when the code, versions or settings behind it change."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llava.utils import UserError


def once(work: Path, name: str, key: str, step: Callable[[], Any]) -> tuple[float, Any]:
    """Run a step, or reuse what it left; returns the seconds that it took when it ran, and its outcome."""
    note = work / f".{name}.json"
    if note.exists():
        done = json.loads(note.read_text())
        if done["key"] == key:
            print(f"== {name}: done before ({done['seconds']:.0f} s then), reused from {work}", flush=True)
            return done["seconds"], done["outcome"]
        note.unlink()
        print(f"== {name}: made by other code, versions or device; doing it again", flush=True)
    print(f"== {name}", flush=True)
    started = time.perf_counter()
    outcome = step()
    seconds = round(time.perf_counter() - started, 1)
    note.write_text(json.dumps({"key": key, "seconds": seconds, "outcome": outcome}) + "\n")
    print(f"== {name}: {seconds:.0f} s", flush=True)
    return seconds, outcome


def key_of(before: str, sources: Iterable[Path]) -> str:
    """Digest what a step depends on: the steps before it and its own source files."""
    digest = hashlib.sha256(before.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def check_device(device: str) -> None:
    """Refuse a device that is not there. Raises UserError."""
    if device == "cpu":
        return
    import torch  # only here: the other steps are processes of their own

    if not device.startswith("cuda"):
        raise UserError(f"--device is {device!r}; expected cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f"--device is {device}, but torch finds no CUDA device; use --device cpu")
