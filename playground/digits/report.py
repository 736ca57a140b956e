"""The picture sheet of the quickstart: test digits with the model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image, ImageOps

from playground.digits.questions import is_right

ROWS = {"which_digit": 8, "odd_even": 4, "larger_than_five": 4, "which_larger": 4, "sum": 4}
MISTAKES = 8
COLUMNS = 8


def choose_examples(answered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take evenly spaced questions of each kind, whatever was answered, and then some mistakes."""
    chosen: list[dict[str, Any]] = []
    for offset, (kind, wanted) in enumerate(ROWS.items()):
        of_kind = [one for one in answered if one["kind"] == kind][7 * offset :]
        chosen += of_kind[:: max(1, len(of_kind) // wanted)][:wanted]
    ids = {one["id"] for one in chosen}
    wrong = [
        one
        for one in answered
        if one["images"] and one["id"] not in ids and not is_right(one["said"], one["answer"])
    ]
    return chosen + wrong[:MISTAKES]


def picture_sheet(answered: list[dict[str, Any]], images: Path, path: Path) -> None:
    """Draw test digits with question and answer; wrong answers are red and name the right one."""
    examples = choose_examples(answered)
    rows = -(-len(examples) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(COLUMNS * 1.75, rows * 2.0), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, example in zip(axes.flat, examples, strict=False):
        _draw(axis, example, images)
    figure.suptitle("Held-out digits; the last row shows mistakes", fontsize=11)
    figure.tight_layout(h_pad=1.0, rect=(0, 0, 1, 0.99))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axis: Axes, example: dict[str, Any], images: Path) -> None:
    pictures = [Image.open(images / name) for name in example["images"]]
    gap, side = 8, pictures[0].width
    strip = Image.new("L", (len(pictures) * (side + gap) - gap, side), 255)
    for position, picture in enumerate(pictures):
        strip.paste(picture, (position * (side + gap), 0))
    axis.imshow(ImageOps.expand(strip, border=4, fill=225), cmap="gray", vmin=0, vmax=255)
    question = example["question"].replace("<image>", "").replace("First: \nSecond: \n", "").strip()
    axis.set_title(_wrap(question), fontsize=7)
    right = is_right(example["said"], example["answer"])
    text = example["said"] if right else f"{example['said']}   (is: {example['answer']})"
    axis.text(
        0.5, -0.06, text, transform=axis.transAxes, ha="center", va="top", fontsize=10, weight="bold",
        color="#1a7f37" if right else "#cf222e",
    )  # fmt: skip


def _wrap(text: str, width: int = 26) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
