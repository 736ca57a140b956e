"""Puts a quickstart's numbers and images into README.md and docs/quickstart.md.

python docs/update_numbers.py runs/quickstart --machine "2 cores of an AMD EPYC" --date 2026-11-20
With --lora runs/choose_lora, the numbers of `quickstart.sh --lora` and of the choice of its recipe instead.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
KINDS = {
    "which_digit": "Which digit is this?",
    "odd_even": "Is this digit odd or even?",
    "larger_than_five": "Is this digit larger than five?",
    "which_larger": "two images: which digit is larger?",
    "sum": "two images: what is the sum?",
    "text": "no image: What is 3 plus 4?",
}
STEPS = {
    "setup": "installation, downloads included",
    "data": "data, and making the tower and the language model",
    "pretrain": "stage 1",
    "finetune": "stage 2",
    "evaluate": "evaluation, images and one turn of chat",
    "export": "export to transformers' format, and 100 digits asked there",
    "total": "together",
}
LORA_STEPS = {
    "lora": "stage 2 with LoRA",
    "evaluate-lora": "evaluation, a turn of chat, merging, the merged model's evaluation",
}
IMAGES = {"sheet.png": "quickstart_sheet.png", "llava-digits/loss_curve.png": "quickstart_loss.png"}


def accuracy_table(result: dict[str, Any]) -> str:
    """Write the accuracies of the model and of the SVC as a table."""
    lines = ["| held-out question | questions | right |", "|---|---:|---:|"]
    for kind, title in KINDS.items():
        lines.append(f"| {title} | {result['n'][kind]} | {result['accuracy'][kind]:.1%} |")
    svc, count = result["svc_accuracy"], result["n"]["which_digit"]
    lines.append(f"| scikit-learn's SVC on the same images: which digit | {count} | {svc:.1%} |")
    return "\n".join(lines)


def time_table(result: dict[str, Any]) -> str:
    """Write the seconds of each step as a table."""
    lines = ["| step | seconds |", "|---|---:|"]
    lines += [f"| {title} | {result['seconds'][step]:.0f} |" for step, title in STEPS.items()]
    return "\n".join(lines)


def numbers(result: dict[str, Any], machine: str, date: str) -> str:
    """Write both tables and how they came about."""
    versions = result["versions"]
    chat = result["chat"]
    return "\n\n".join(
        (
            accuracy_table(result),
            time_table(result),
            f"Measured by one run on {date}: {machine}, Python {versions['python']}, torch "
            f"{versions['torch']}, transformers {versions['transformers']}. The turn of chat was: "
            f'"{chat["question"]}" "{chat["answer"]}".',
        )
    )


def lora_numbers(result: dict[str, Any], machine: str, date: str) -> str:
    """Write the tables of the LoRA variant, and how they came about."""
    versions, merged = result["versions"], result["merged"]
    seconds = ["| step | seconds |", "|---|---:|"]
    seconds += [f"| {title} | {result['seconds'][step]:.0f} |" for step, title in LORA_STEPS.items()]
    return "\n\n".join(
        (
            accuracy_table(result),
            "\n".join(seconds),
            f"Measured by one run on {date}: {machine}, peft {versions['peft']}. The "
            f"merged model gave {merged['same_answers']:,} of {merged['of']:,} answers unchanged.",
        )
    )


def choice_table(rows: list[dict[str, Any]]) -> str:
    """Write what playground/digits/choose_lora.py measured, best first."""
    lines = [
        "| rank | alpha | rate | projector's rate | which digit | mean of the five kinds |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        settings = (row["rank"], row["alpha"], row["learning_rate"], row["mm_projector_lr"])
        cells = [*settings, f"{row['which_digit']:.1%}", f"{row['mean']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put(page: Path, content: str, mark: str = "numbers") -> None:
    """Replace what stands between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- {mark}:begin -->\n).*?(<!-- {mark}:end -->)"
    text, found = re.subn(
        pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, count=1, flags=re.S
    )
    if not found:
        raise SystemExit(f"{page} has no {mark}:begin and {mark}:end")
    page.write_text(text, encoding="utf-8")


def _update_lora(run: Path, choice: Path, machine: str, date: str) -> None:
    result = json.loads((run / "result-lora.json").read_text(encoding="utf-8"))
    result["choice"] = json.loads((choice / "choice.json").read_text(encoding="utf-8"))
    page = DOCS / "quickstart.md"
    put(page, lora_numbers(result, machine, date), "lora-numbers")
    put(page, choice_table(result["choice"]), "lora-choice")
    text = json.dumps(result, indent=2) + "\n"
    (DOCS / "quickstart_lora_result.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Parse the command line and update the pages."""
    parser = argparse.ArgumentParser(description="Put a quickstart's numbers into the documentation.")
    parser.add_argument("run", type=Path, help="folder of the quickstart")
    parser.add_argument("--machine", required=True, help="what it ran on, in words")
    parser.add_argument("--date", required=True, help="when, as 2026-11-20")
    parser.add_argument("--lora", type=Path, help="folder of choose_lora: update the LoRA variant's numbers")
    args = parser.parse_args()
    if args.lora is not None:
        _update_lora(args.run, args.lora, args.machine, args.date)
        return
    result = json.loads((args.run / "result.json").read_text(encoding="utf-8"))
    content = numbers(result, args.machine, args.date)
    for page in (DOCS.parent / "README.md", DOCS / "quickstart.md"):
        put(page, content)
    for source, target in IMAGES.items():
        shutil.copyfile(args.run / source, DOCS / "images" / target)
    (DOCS / "quickstart_result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
