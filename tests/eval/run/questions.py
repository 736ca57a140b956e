"""A small set of digit questions on disk, as the quickstart writes them, for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

KINDS = ("which_digit", "sum", "text")


def write_questions(folder: Path, count: int = 12) -> Path:
    """Write test.json and images/: questions with one image, with two and without; returns the folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    questions = []
    for number in range(count):
        n_images = (1, 2, 0)[number % 3]
        names = [f"{number}-{place}.png" for place in range(n_images)]
        for place, name in enumerate(names):
            shade = (number * 20 + place * 7) % 256
            Image.new("RGB", (20 + number, 30), (shade, 90, 255 - shade)).save(folder / "images" / name)
        text = f"{'Tell me more. ' * (number % 4)}What is {number} plus 1?"
        questions.append(
            {
                "id": number,
                "kind": KINDS[number % 3],
                "images": names,
                "question": text,
                "answer": str(number + 1),
            }
        )
    (folder / "test.json").write_text(json.dumps(questions))
    return folder
