"""The quickstart as a story: data, models, stage 1, stage 2, evaluation, a chat turn, result.json."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.utils import UserError, run_program
from playground.digits.table import table
from playground.digits.training import ROOT, train

HERE = Path(__file__).resolve().parent
# Which files each step depends on, beside the steps before it.
SOURCES = {
    "data": ("questions.py", "pictures.py", "data.py", "tower.py", "language.py"),
    "pretrain": ("training.py",),
    "finetune": ("training.py",),
    "evaluate": ("evaluate.py", "report.py", "quickstart.py"),
}
PACKAGES = ("torch", "transformers", "accelerate", "peft", "sentencepiece", "pillow", "numpy", "scikit-learn")
CHAT_QUESTION = "Which digit is this?"


def main(arguments: argparse.Namespace) -> None:
    """Run every step that has not been done yet, and write result.json."""
    work = arguments.output.resolve()
    _check_device(arguments.device)
    if arguments.fresh and work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[], Any]] = {
        "data": lambda: make_data_and_models(work),
        "pretrain": lambda: train("pretrain", work, arguments.device),
        "finetune": lambda: train("finetune", work, arguments.device),
        "evaluate": lambda: evaluate(work, arguments.device),
    }
    seconds = {"setup": round(arguments.setup_seconds, 1)}
    outcome: dict[str, Any] = {}
    key = f"{arguments.device} {_versions()}"
    for name, step in steps.items():
        key = _key(key, SOURCES[name])
        seconds[name], outcome[name] = _once(work, name, key, step)
    seconds["total"] = round(sum(seconds.values()), 1)
    result = {**outcome["evaluate"], "seconds": seconds, "versions": _versions()}
    (work / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    _tell(result, work)


def _once(work: Path, name: str, key: str, step: Callable[[], Any]) -> tuple[float, Any]:
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


def _key(before: str, sources: tuple[str, ...]) -> str:
    """Digest what a step depends on: the steps before it and its own source files."""
    digest = hashlib.sha256(before.encode())
    for source in sources:
        digest.update((HERE / source).read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _check_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device == "cpu":
        return
    import torch  # only here: the other steps are processes of their own

    if not device.startswith("cuda"):
        raise UserError(f"--device is {device!r}; expected cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f"--device is {device}, but torch finds no CUDA device; use --device cpu")


def make_data_and_models(work: Path) -> None:
    """Write data/, and models/tower and models/llm; the two models are trained side by side."""
    shutil.rmtree(work / "data", ignore_errors=True)
    shutil.rmtree(work / "models", ignore_errors=True)
    makers = []
    for module, folder in (("language", "llm"), ("tower", "tower")):
        words = [sys.executable, "-m", f"playground.digits.{module}", str(work / "models" / folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # one core each
        makers.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL))
    try:
        from playground.digits.data import make_data

        counts = make_data(work / "data")
        print("  data: " + ", ".join(f"{count} {name}" for name, count in counts.items()), flush=True)
        codes = [maker.wait() for maker in makers]
    finally:
        for maker in makers:
            maker.kill()
    if any(codes):
        raise RuntimeError("making the tower or the language model failed; its error stands above")


def evaluate(work: Path, device: str) -> dict[str, Any]:
    """Ask the test questions, measure the SVC, draw the sheet, chat once: accuracies, counts and the chat."""
    from playground.digits import evaluate as exam
    from playground.digits.report import picture_sheet

    answered = exam.evaluate(work / "llava-digits", work / "data", device)
    (work / "answers.json").write_text(json.dumps(answered, indent=1) + "\n")
    accuracy, counts = exam.score(answered)
    picture_sheet(answered, work / "data" / "images", work / "sheet.png")
    return {
        "accuracy": {kind: round(value, 4) for kind, value in accuracy.items()},
        "n": counts,
        "svc_accuracy": round(exam.svc_accuracy(), 4),
        "chat": chat(work, answered[0]["images"][0], device),
    }


def chat(work: Path, image: str, device: str) -> dict[str, str]:
    """Ask one question through llava.serve.cli, as a person would."""
    path = work / "data" / "images" / image
    words = ["-m", "llava.serve.cli", "--model-path", str(work / "llava-digits"), "--image-file", str(path)]
    words += ["--device", device, "--temperature", "0", "--max-new-tokens", "16"]
    print(f"$ echo '{CHAT_QUESTION}' | python {' '.join(words)}", flush=True)
    run = subprocess.run(
        [sys.executable, *words],
        input=f"{CHAT_QUESTION}\n",
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(run.stdout, flush=True)
    answer = run.stdout.rpartition("ASSISTANT:")[2].strip()
    return {"image": str(path.relative_to(work)), "question": CHAT_QUESTION, "answer": answer}


def _tell(result: dict[str, Any], work: Path) -> None:
    """Print the table, the timings and where everything lies."""
    print(f"\n{table(result['accuracy'], result['n'], result['svc_accuracy'])}\n")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in result["seconds"].items()))
    for what, name in {
        "answered test digits": "sheet.png",
        "loss curve of stage 1": "llava-digits-pretrain/loss_curve.png",
        "loss curve of stage 2": "llava-digits/loss_curve.png",
        "every answer": "answers.json",
        "all numbers": "result.json",
        "the model, for llava.serve.cli --model-path": "llava-digits",
    }.items():
        print(f"{what}: {work / name}")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="bash scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "quickstart", help="folder (default: runs/quickstart)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete what an earlier run left, and start anew"
    )
    parser.add_argument("--setup-seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
