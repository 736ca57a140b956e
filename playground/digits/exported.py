"""The trained model in transformers' format: converted, and asked 100 digits by transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from llava.utils import UserError
from playground.digits.training import ROOT

ASKED = 100


def export(model: Path) -> Path:
    """Convert a model with llava.model.convert_hf, which compares the logits, to a folder beside it."""
    folder = model.with_name(f"{model.name}-hf")
    words = ["-m", "llava.model.convert_hf", "to-hf", str(model), str(folder), "--overwrite"]
    print(f"$ python {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    return folder


def ask_transformers(folder: Path, answered: list[dict[str, Any]], images: Path) -> dict[str, Any]:
    """Ask transformers' own class about digits that were answered before, and count equal answers."""
    asked = [one for one in answered if one["kind"] == "which_digit" and "<image>" not in one["question"]]
    asked = asked[:: max(1, len(asked) // ASKED)][:ASKED]
    questions = [{"question": one["question"], "image": one["images"][0]} for one in asked]
    words = ["-m", "playground.digits.plain_transformers", str(folder), str(images)]
    print(f"$ python {' '.join(words)} ({len(questions)} digits)", flush=True)
    run = subprocess.run(
        [sys.executable, *words], input=json.dumps(questions), cwd=ROOT, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    said = json.loads(run.stdout)
    same = sum(own["said"] == theirs for own, theirs in zip(asked, said, strict=True))
    if same < len(asked):
        raise UserError(
            f"{folder}: transformers gives the same answer to {same} of {len(asked)} digits; expected all"
        )
    return {"same_answers": same, "of": len(asked)}
