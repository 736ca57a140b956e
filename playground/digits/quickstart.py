"""The quickstart as a story: data, models, stage 1, stage 2 (whole or LoRA), evaluation, a chat turn."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.utils import run_program
from playground.digits.table import bar, table
from playground.digits.training import ROOT, train
from playground.steps import check_device, key_of, once, versions

HERE = Path(__file__).resolve().parent
# Which files each step depends on, beside the steps before it.
SOURCES = {
    "data": ("questions.py", "images.py", "data.py", "tower.py", "language.py"),
    "pretrain": ("training.py", "../launch.py"),
    "finetune": ("training.py", "../launch.py"),
    "evaluate": ("evaluate.py", "report.py", "quickstart.py"),
    "export": ("exported.py", "plain_transformers.py"),
    "lora": ("training.py", "../launch.py"),
    "evaluate-lora": ("evaluate.py", "report.py", "quickstart.py", "merged.py"),
}
PACKAGES = ("torch", "transformers", "accelerate", "peft", "sentencepiece", "pillow", "numpy", "scikit-learn")
CHAT_QUESTION = "Which digit is this?"


@dataclass(frozen=True)
class Variant:
    """A way of stage 2: its steps, the folder of its model, its base, and the mark of its files."""

    train: str
    evaluate: str
    model: str
    base: str | None
    mark: str

    def file(self, name: str) -> str:
        """Name a file of this variant: `result.json`, `result-lora.json`."""
        return name.replace(".", f"{self.mark}.")


FULL = Variant("finetune", "evaluate", "llava-digits", None, "")
LORA = Variant("lora", "evaluate-lora", "llava-digits-lora", "models/llm", "-lora")


def main(arguments: argparse.Namespace) -> None:
    """Run every step that has not been done yet, and write the result.

    Ends with exit code 1 when the model reads digits no better than the SVC.
    """
    variant = LORA if arguments.lora else FULL
    work = (arguments.output or ROOT / "runs" / "quickstart").resolve()
    check_device(arguments.device)
    if arguments.fresh and work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[], Any]] = {
        "data": lambda: make_data_and_models(work),
        "pretrain": lambda: train("pretrain", work, arguments.device),
        variant.train: lambda: train(variant.train, work, arguments.device),
        variant.evaluate: lambda: evaluate(work, arguments.device, variant),
    }
    if variant is FULL:
        steps["export"] = lambda: export_model(work, variant)
    seconds = {"setup": round(arguments.setup_seconds, 1)}
    outcome: dict[str, Any] = {}
    key = f"{arguments.device} {versions(PACKAGES)}"
    for name, step in steps.items():
        key = key_of(key, (HERE / source for source in SOURCES[name]))
        seconds[name], outcome[name] = once(work, name, key, step)
    seconds["total"] = round(sum(seconds.values()), 1)
    result = {**outcome[variant.evaluate], "seconds": seconds, "versions": versions(PACKAGES)}
    if "export" in outcome:
        result["transformers"] = outcome["export"]
    (work / variant.file("result.json")).write_text(json.dumps(result, indent=2) + "\n")
    _tell(result, work, variant)
    if not result["reached"]:
        sys.exit("the quickstart did not reach its bar; see above")


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


def evaluate(work: Path, device: str, variant: Variant) -> dict[str, Any]:
    """Ask the test questions, measure the SVC, draw the sheet, chat once: accuracies, counts and the chat.

    An adapter is merged as well, and the merged model asked the same.
    """
    from playground.digits import evaluate as exam
    from playground.digits.merged import compare, merge
    from playground.digits.report import image_sheet

    base = None if variant.base is None else work / variant.base
    as_merged = base is not None
    answered = exam.evaluate(work / variant.model, work / "data", device, base, as_merged=as_merged)
    (work / variant.file("answers.json")).write_text(json.dumps(answered, indent=1) + "\n")
    accuracy, counts = exam.score(answered)
    svc = exam.svc_accuracy()
    image_sheet(answered, work / "data" / "images", work / variant.file("sheet.png"))
    outcome: dict[str, Any] = {
        "accuracy": {kind: round(value, 4) for kind, value in accuracy.items()},
        "n": counts,
        "svc_accuracy": round(svc, 4),
        "reached": accuracy["which_digit"] > svc,
        "chat": chat(work, answered[0]["images"][0], device, variant),
    }
    if base is not None:
        merged = merge(work / variant.model, base)
        again = exam.evaluate(merged, work / "data", device, as_merged=True)
        outcome["merged"] = compare(answered, again)
        outcome["reached"] = outcome["reached"] and outcome["merged"]["agrees"]
    return outcome


def export_model(work: Path, variant: Variant) -> dict[str, Any]:
    """Convert the model to transformers' format and let transformers alone answer 100 digits."""
    from playground.digits.exported import ask_transformers, export

    answered = json.loads((work / variant.file("answers.json")).read_text())
    return ask_transformers(export(work / variant.model), answered, work / "data" / "images")


def chat(work: Path, image: str, device: str, variant: Variant) -> dict[str, str]:
    """Ask one question through llava.serve.cli, as a person would."""
    path = work / "data" / "images" / image
    words = ["-m", "llava.serve.cli", "--model-path", str(work / variant.model), "--image-file", str(path)]
    if variant.base is not None:
        words += ["--model-base", str(work / variant.base)]
    words += ["--device", device, "--temperature", "0", "--max-new-tokens", "16"]
    print(
        f"$ echo '{CHAT_QUESTION}' | python -m llava.serve.cli --model-path {work / variant.model} ...",
        flush=True,
    )
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


def _tell(result: dict[str, Any], work: Path, variant: Variant) -> None:
    """Print the table, the bar, the timings and where everything lies."""
    print(f"\n{table(result['accuracy'], result['n'], result['svc_accuracy'])}\n")
    print(bar(result))
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in result["seconds"].items()))
    places = {
        "answered test digits": variant.file("sheet.png"),
        "loss curve of stage 1": "llava-digits-pretrain/loss_curve.png",
        "loss curve of stage 2": f"{variant.model}/loss_curve.png",
        "every answer": variant.file("answers.json"),
        "all numbers": variant.file("result.json"),
        "the model, for llava.serve.cli --model-path": variant.model,
    }
    if told := result.get("transformers"):
        print(f"transformers alone gives the same answer to {told['same_answers']} of {told['of']} digits")
        places["the model in transformers' format"] = f"{variant.model}-hf"
    if variant.base is not None:
        places["its base, for --model-base"] = variant.base
        places["the model with the adapter merged in"] = "llava-digits-merged"
    for what, name in places.items():
        print(f"{what}: {work / name}")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="bash scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--output", type=Path, help="folder (default: runs/quickstart; runs/smol with --smol)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete what an earlier run left, and start over"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--lora",
        action="store_true",
        help="stage 2 with LoRA; data, models and stage 1 of an earlier run are reused",
    )
    kinds.add_argument(
        "--smol",
        nargs="?",
        const="full",
        choices=("full", "short"),
        help="a LLaVA of real, pretrained parts instead, in runs/smol: docs/quickstart_smol.md; short: every "
        "step on few records, in a few minutes, in runs/smol-short",
    )
    parser.add_argument("--setup-seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Run the quickstart that the arguments name."""
    if arguments.smol is None:
        return main(arguments)
    from playground.smol.quickstart import run as run_smol  # heavier than what most calls need

    run_smol(arguments)


if __name__ == "__main__":
    run_program(lambda: run(build_parser().parse_args()))
