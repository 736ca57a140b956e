"""Writes the table of docs/families.md from the entries of its families: `python docs/update_families.py`.

The families are those that stand in the page; tests/model/families/test_families_page.py compares the two.
"""

from __future__ import annotations

import re
from pathlib import Path

from llava.atomic import atomic_file
from llava.model.language_model.registry import family_of
from llava.train.setup.packing import keeps_samples_apart

PAGE = Path(__file__).parent / "families.md"
ROW = re.compile(r"^\| `(?!model_type`)([\w-]+)` \|.*$", re.MULTILINE)


def row(base_type: str) -> str:
    """Return a family's line of the table."""
    family = family_of({"model_type": base_type})
    shown = ("sdpa", "eager", "flash_attention_2", "flex_attention")
    kernels = [name for name in shown if name in family.attention]
    packs = family.packable
    if packs is None:
        packs, _ = keeps_samples_apart(base_type, kernels[0])
    cells = [
        f"`{base_type}`",
        f"`{family.llava_type}`",
        f"`{family.model_class.__name__}`",
        ", ".join(kernels),
        "yes" if packs else "no",
        "yes" if family.exports else "no",
    ]
    return f"| {' | '.join(cells)} |"


def updated(text: str) -> str:
    """Return the page with every line of its table made again."""
    return ROW.sub(lambda found: row(found[1]), text)


if __name__ == "__main__":
    with atomic_file(PAGE) as scratch:
        scratch.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
