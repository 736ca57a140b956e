"""The table and the image sheet of the run with real parts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from llava.eval.tasks.custom import exact
from playground.smol.data import KINDS, Record

COLUMNS, ROWS = 8, 4
CELL = (1.7, 2.0)  # inches of a card
GREY = "#57606a"


def table(result: dict[str, Any]) -> str:
    """Write accuracies with and without the image, by kind, as lines of text."""
    lines = [f"{'question':<16}{'asked':>7}{'right':>8}{'without the image':>20}"]
    for kind, title in {**KINDS, "all": "all"}.items():
        if result["n"][kind]:
            right, blind = result["accuracy"][kind], result["without_image"][kind]
            lines.append(f"{title:<16}{result['n'][kind]:>7}{right:>8.1%}{blind:>20.1%}")
    guesses = result["most_frequent"]
    lines.append(
        f"the most frequent answer: {guesses['by_kind']:.1%} by kind, {guesses['by_text']:.1%} by question"
    )
    return "\n".join(lines)


def choose_examples(answered: Sequence[Record]) -> list[Record]:
    """Take evenly spaced questions of each kind, whatever was answered."""
    cards = COLUMNS * ROWS
    wanted = {"yes_no": cards // 2, "shape": cards // 4, "colour": cards // 4}
    chosen: list[Record] = []
    for kind, count in wanted.items():
        some = [one for one in answered if one["kind"] == kind]
        chosen += some[:: max(1, len(some) // count)][:count]
    return chosen


def image_sheet(answered: Sequence[Record], images: Path, path: Path) -> None:
    """Draw test images with question and answer; wrong answers are red and name the right one."""
    examples = choose_examples(answered)
    rows = -(-len(examples) // COLUMNS)
    size = (CELL[0] * COLUMNS, CELL[1] * rows)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, facecolor="white", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, example in zip(axes.flat, examples, strict=False):
        _draw(axis, example, images)
    figure.tight_layout(h_pad=3.5)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw(axis: Axes, example: Record, images: Path) -> None:
    with Image.open(images / example["image"]) as image:
        axis.imshow(image.convert("RGB"))
    axis.set_title("\n".join(textwrap.wrap(example["text"], width=24)), fontsize=8, color=GREY)
    right = bool(exact(example["said"], [example["answer"]]))
    said = example["said"] if right else f"{example['said'][:12] or 'nothing'} (right: {example['answer']})"
    axis.text(
        0.5, -0.1, said, transform=axis.transAxes, ha="center", va="center", fontsize=10, weight="bold",
        color="#1a7f37" if right else "#cf222e",
    )  # fmt: skip
