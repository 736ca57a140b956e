"""Puts the numbers of a run of `scripts/quickstart.sh --smol` into docs/quickstart_smol.md.

python docs/update_smol.py runs/smol --machine "2 cores of an AMD EPYC, busy" --date 2026-11-29
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from update_numbers import DOCS, put

KINDS = {"yes_no": "yes or no", "shape": "which shape", "colour": "which colour", "all": "all"}
STEPS = {
    "models": "language model and tower",
    "data": "data",
    "pretrain": "stage 1",
    "finetune": "stage 2",
    "evaluate": "evaluation, image sheet, chat",
    "total": "together",
}
IMAGES = {"sheet.png": "quickstart_smol_sheet.png"}


def numbers(result: dict[str, Any], machine: str, date: str) -> str:
    """Write the tables, how they came about, and the chat about the photo."""
    right, blind, guesses = result["accuracy"], result["without_image"], result["most_frequent"]
    lines = ["| question | asked | right | without the image |", "|---|---:|---:|---:|"]
    lines += [
        f"| {title} | {result['n'][kind]} | {right[kind]:.1%} | {blind[kind]:.1%} |"
        for kind, title in KINDS.items()
    ]
    lines.append(f"| the most frequent answer to each kind of question | | | {guesses['by_kind']:.1%} |")
    lines.append(f"| the most frequent answer to each wording | | | {guesses['by_text']:.1%} |")
    seconds = ["| step | seconds |", "|---|---:|"]
    seconds += [f"| {title} | {result['seconds'][step]:.0f} |" for step, title in STEPS.items()]
    versions, data = result["versions"], result["data"]
    told = (
        f"Measured by one run on {date}: {machine}, Python {versions['python']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}; {data['captions']:,} captions, {data['dialogs']} dialogs "
        f"with {data['questions in them']:,} questions."
    )
    turns = "; ".join(f'"{question}" "{answer}"' for question, answer in result["chat"]["turns"])
    chat = f"The chat about scikit-learn's `{result['chat']['photo']}`: {turns}."
    return "\n\n".join(["\n".join(lines), "\n".join(seconds), told, chat])


def main() -> None:
    """Parse the command line and update the page, its image and the recorded result."""
    parser = argparse.ArgumentParser(description="Put the numbers of --smol into the documentation.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--machine", required=True, help="what it ran on, in words")
    parser.add_argument("--date", required=True, help="when, as 2026-11-29")
    args = parser.parse_args()
    result = json.loads((args.run / "result.json").read_text(encoding="utf-8"))
    put(DOCS / "quickstart_smol.md", numbers(result, args.machine, args.date), "smol-numbers")
    for source, target in IMAGES.items():
        shutil.copyfile(args.run / source, DOCS / "images" / target)
    text = json.dumps(result, indent=2) + "\n"
    (DOCS / "quickstart_smol_result.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
