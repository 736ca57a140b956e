"""How the LoRA recipe was chosen: candidates measured on held-out digits of the training half.

python -m playground.digits.choose_lora [--output runs/choose_lora]

The test half plays no part. The last fifth of the training half is held out from the tower, from stage 1 and
from stage 2; the language model never sees an image anyway.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llava.utils import run_program
from playground.digits import evaluate as exam
from playground.digits.data import make_data
from playground.digits.images import Digits, load_halves
from playground.digits.language import make_language_model
from playground.digits.questions import ONE_IMAGE, TWO_IMAGES, is_right
from playground.digits.tower import make_tower
from playground.digits.training import ROOT, train

HELD_OUT = 0.2  # of the training half
KINDS = (*ONE_IMAGE, *TWO_IMAGES)  # the text questions ask nothing about images
# rank, alpha, rate of the adapters, rate of the projector. The first are those of the reference's script.
CANDIDATES = (
    ("128", "256", "2e-4", "2e-5"),
    ("32", "64", "1e-3", "1e-3"),
    ("32", "64", "2e-3", "1e-3"),
    ("16", "32", "2e-3", "1e-3"),
)


def split_training_half() -> tuple[Digits, Digits]:
    """Split the training half: what candidates are trained on, and what they are asked about."""
    half, _ = load_halves()
    at = round(len(half.labels) * (1 - HELD_OUT))
    return Digits(half.ink[:at], half.labels[:at], 0), Digits(half.ink[at:], half.labels[at:], at)


def prepare(work: Path) -> None:
    """Make data, tower, language model and stage 1 from the part that candidates are trained on."""
    fit, asked = split_training_half()
    make_data(work / "data", (fit, asked))
    make_tower(work / "models" / "tower", train=fit)
    make_language_model(work / "models" / "llm")
    train("pretrain", work, "cpu")


def measure(work: Path, candidate: tuple[str, str, str, str]) -> dict[str, float]:
    """Train a candidate, unless an earlier call did; returns its accuracy for each kind, and their mean."""
    rank, alpha, rate, projector_rate = candidate
    folder = work / f"llava-lora-r{rank}-{rate}-{projector_rate}"
    changed = {"lora_r": rank, "lora_alpha": alpha, "learning_rate": rate, "mm_projector_lr": projector_rate}
    if not (folder / "adapter_config.json").exists():
        train("lora", work, "cpu", {**changed, "output_dir": str(folder)})
    questions = [one for one in json.loads((work / "data" / "test.json").read_text()) if one["images"]]
    answerer = exam.Answerer(folder, "cpu", work / "models" / "llm")
    answered = exam.answer_all(answerer, questions, work / "data" / "images")
    rights = {
        kind: [is_right(o["said"], o["answer"]) for o in answered if o["kind"] == kind] for kind in KINDS
    }
    accuracy = {kind: sum(right) / len(right) for kind, right in rights.items()}
    return {**accuracy, "mean": sum(accuracy.values()) / len(accuracy)}


def main(work: Path) -> None:
    """Measure every candidate and print them, best first; the numbers go to choice.json."""
    work = work.resolve()
    if not (work / "llava-digits-pretrain" / "mm_projector.bin").exists():
        prepare(work)
    measured = {candidate: measure(work, candidate) for candidate in CANDIDATES}
    ranked = sorted(CANDIDATES, key=lambda candidate: -measured[candidate]["mean"])
    rows = [
        {"rank": rank, "alpha": alpha, "learning_rate": rate, "mm_projector_lr": projector, **measured[one]}
        for one in ranked
        for rank, alpha, rate, projector in (one,)
    ]
    (work / "choice.json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(
            "  ".join(
                f"{key} {value if isinstance(value, str) else f'{value:.4f}'}" for key, value in row.items()
            )
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "choose_lora", help="folder to work in"
    )
    arguments = parser.parse_args()
    run_program(lambda: main(arguments.output))
