"""The image sheet of the quickstart: test digits with the model's answers."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image, ImageOps

from playground.digits.questions import is_right
from playground.digits.table import TITLES

EXAMPLES = {"which_digit": 8, "odd_even": 4, "larger_than_five": 4, "which_larger": 4, "sum": 4}
COLUMNS = 8
CELL = (1.75, 2.15)  # inches of a card
TITLE = 0.32  # inches of it for the title of its kind
HEAD = 0.75  # inches above the first row
GREY = "#57606a"


def choose_examples(answered: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Take evenly spaced questions of each kind, whatever was answered, and mistakes: title -> questions."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for offset, (kind, wanted) in enumerate(EXAMPLES.items()):
        of_kind = [one for one in answered if one["kind"] == kind][7 * offset :]
        chosen[TITLES[kind]] = of_kind[:: max(1, len(of_kind) // wanted)][:wanted]
    ids = {one["id"] for examples in chosen.values() for one in examples}
    wrong = [
        one
        for one in answered
        if one["images"] and one["id"] not in ids and not is_right(one["said"], one["answer"])
    ]
    return {**chosen, "mistakes": wrong[:COLUMNS]}


def image_sheet(answered: list[dict[str, Any]], images: Path, path: Path) -> None:
    """Draw test digits with question and answer by kind; wrong answers are red and name the right one."""
    sections = {title: examples for title, examples in choose_examples(answered).items() if examples}
    rows = -(-sum(map(len, sections.values())) // COLUMNS)
    height = CELL[1] * rows + HEAD
    figure = plt.figure(figsize=(CELL[0] * COLUMNS, height), facecolor="white")
    right = sum(is_right(one["said"], one["answer"]) for one in answered)
    told = f"{right:,} of {len(answered):,} test questions answered rightly"
    middle = 1 - HEAD / 2 / height
    figure.text(0.012, middle, "Held-out digits", fontsize=16, weight="bold", va="center")
    figure.text(0.988, middle, told, fontsize=11, color=GREY, va="center", ha="right")
    card = 0
    for title, examples in sections.items():
        for position, example in enumerate(examples):
            row, column = divmod(card + position, COLUMNS)
            left, top = column / COLUMNS, 1 - (HEAD + row * CELL[1]) / height
            if position == 0:
                figure.text(left + 0.012, top, title.capitalize(), fontsize=10, weight="bold", va="center")
            card_height = CELL[1] - TITLE
            place = (left, top - (TITLE / 2 + card_height) / height, 1 / COLUMNS, card_height / height)
            _draw(figure.add_axes(place), example, images)
        card += len(examples)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axis: Axes, example: dict[str, Any], images: Path) -> None:
    """Draw one card: the question in lines that always have room, the images, what was said."""
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.axis("off")
    opened = [Image.open(images / name) for name in example["images"]]
    gap, side = 8, opened[0].width
    strip = Image.new("L", (len(opened) * (side + gap) - gap, side), 255)
    for position, image in enumerate(opened):
        strip.paste(image, (position * (side + gap), 0))
    question = example["question"].replace("<image>", "").replace("First: \nSecond: \n", "").strip()
    axis.text(
        0.5, 0.79, _wrap(question), fontsize=7.5, color=GREY, ha="center", va="bottom", linespacing=1.15
    )
    frame = axis.inset_axes((0.08, 0.20, 0.84, 0.56))
    frame.imshow(ImageOps.expand(strip, border=4, fill=225), cmap="gray", vmin=0, vmax=255)
    frame.axis("off")
    right = is_right(example["said"], example["answer"])
    axis.text(
        0.5, 0.13, _cut(example["said"]), ha="center", va="center", fontsize=11, weight="bold",
        color="#1a7f37" if right else "#cf222e",
    )  # fmt: skip
    if not right:
        axis.text(0.5, 0.02, f"right: {example['answer']}", ha="center", va="center", fontsize=8, color=GREY)


def _cut(text: str, longest: int = 15) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _wrap(text: str) -> str:
    """Break a question into at most three lines of a card."""
    return "\n".join(textwrap.wrap(text, width=26, max_lines=3, placeholder=" …"))
