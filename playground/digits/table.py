"""The accuracies as text, for a reader at a terminal."""

from __future__ import annotations

from typing import Any

from playground.digits.questions import KINDS

TITLES = {
    "which_digit": "which digit",
    "odd_even": "odd or even",
    "larger_than_five": "larger than five",
    "which_larger": "two images: which is larger",
    "sum": "two images: the sum",
    "text": "text only",
}


def table(accuracy: dict[str, float], counts: dict[str, int], svc: float) -> str:
    """Lay out the accuracies of the model, and the SVC's, as text."""
    lines = [f"{'held-out half':<32}{'questions':>10}{'accuracy':>10}", "-" * 52]
    lines += [f"{TITLES[kind]:<32}{counts[kind]:>10}{accuracy[kind]:>10.4f}" for kind in KINDS]
    lines.append(f"{'SVC(gamma=0.001): which digit':<32}{counts['which_digit']:>10}{svc:>10.4f}")
    return "\n".join(lines)


def bar(result: dict[str, Any]) -> str:
    """Say whether the model reads digits better than the SVC and, with LoRA, answers the same when merged."""
    digits, svc = result["accuracy"]["which_digit"], result["svc_accuracy"]
    state = "reached" if result["reached"] else "MISSED"
    text = f"bar {state}: which digit {digits:.4f}, to be above the SVC's {svc:.4f}"
    if merged := result.get("merged"):
        text += f"; merged, the model gives {merged['same_answers']} of {merged['of']} answers unchanged"
    return text
