"""The LoRA variant's merged model: made by scripts/merge_lora_weights.py, and asked the same questions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from playground.digits.training import ROOT


def merge(adapter: Path, base: Path) -> Path:
    """Merge an adapter folder into its base, beside it; returns the merged folder."""
    merged = adapter.with_name(adapter.name.replace("-lora", "-merged"))
    words = ["scripts/merge_lora_weights.py", "--model-path", str(adapter), "--model-base", str(base)]
    words += ["--save-model-path", str(merged)]
    print(f"$ python {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    return merged


def compare(answered: list[dict[str, Any]], again: list[dict[str, Any]]) -> dict[str, Any]:
    """Count the questions to which both gave the same answer."""
    said = {one["id"]: one["said"] for one in again}
    same = sum(said[one["id"]] == one["said"] for one in answered)
    return {"same_answers": same, "of": len(answered), "agrees": same == len(answered)}
