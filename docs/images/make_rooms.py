"""Draws rooms.svg, the rooms and floors of the package: python docs/images/make_rooms.py"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH = 1040
MARGIN, GAP, LINE = 24, 14, 26
TITLE = 30  # height of a room's heading
COLOURS = {"base": "#f3f4f6", "model": "#ede9fe", "inference": "#dcfce7", "visitors": "#fef3c7"}

# (room, colour, what it is for, its floors from the lowest); a floor imports those before it
ROOMS = (
    (
        "constants, utils, atomic, images",
        "base",
        "numbers, errors, files written whole, images under limits",
        (),
    ),
    ("conversation, mm_utils", "base", "templates and prompts; pixels and token ids", ()),
    (
        "model",
        "model",
        "from ids and pixels to embeddings and logits; everything on disk",
        (
            ("checkpoints", "multimodal"),
            ("multimodal_encoder", "multimodal_projector", "tokenizer"),
            ("settings", "llava_arch"),
            ("language_model",),
            ("plan", "builder"),
            ("conversion", "tools"),
        ),
    ),
    (
        "inference",
        "inference",
        "the one way to ask a model",
        (("sampling, streaming, prompt",), ("decoder, freshness, pool",), ("chat, batch, assistant",)),
    ),
    (
        "train",
        "visitors",
        "from records to a trained checkpoint",
        (
            ("records", "labels", "setup"),
            ("data", "callbacks"),
            ("args",),
            ("checkpointing",),
            ("dry_run", "llava_trainer"),
            ("train",),
        ),
    ),
    ("serve", "visitors", "chat in a terminal", ()),
    ("eval", "visitors", "questions from a command line", ()),
)


def text(x: float, y: float, words: str, size: int, *, weight: str = "normal", fill: str = "#111827") -> str:
    """One line of text that begins at x."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{fill}">'
        f"{escape(words)}</text>"
    )


def room(x: float, y: float, width: float, height: float, entry: tuple) -> str:  # type: ignore[type-arg]
    """A room with its heading and its floors, the lowest above."""
    name, colour, purpose, floors = entry
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="9" fill="{COLOURS[colour]}" '
        'stroke="#9ca3af"/>',
        text(x + 14, y + 21, name, 15, weight="bold"),
        text(x + 14, y + 38, purpose, 12, fill="#4b5563"),
    ]
    for row, floor in enumerate(floors):
        top = y + TITLE + 18 + row * LINE
        cell = (width - 28 - (len(floor) - 1) * 8) / len(floor)
        for column, part in enumerate(floor):
            left = x + 14 + column * (cell + 8)
            parts.append(
                f'<rect x="{left:g}" y="{top:g}" width="{cell:g}" height="{LINE - 5}" rx="5" fill="#ffffff" '
                'stroke="#d1d5db"/>'
            )
            parts.append(text(left + 8, top + 15, part, 12))
    return "\n".join(parts)


def height_of(entry: tuple) -> float:  # type: ignore[type-arg]
    """Height of a room with its floors."""
    return TITLE + 18 + len(entry[3]) * LINE + (4 if entry[3] else 0)


def draw() -> str:
    """Return the whole diagram as SVG: rows of rooms, each row imports those above it."""
    rows = (ROOMS[:2], ROOMS[2:3], ROOMS[3:4], ROOMS[4:])
    y, parts = MARGIN + 18.0, [text(MARGIN, MARGIN + 4, "imports go up only", 13, fill="#4b5563")]
    for entries in rows:
        height = max(map(height_of, entries))
        shares = [2.2 if entry[0] == "train" else 1.0 for entry in entries]
        free, x = WIDTH - 2 * MARGIN - GAP * (len(entries) - 1), float(MARGIN)
        for entry, share in zip(entries, shares, strict=True):
            width = free * share / sum(shares)
            parts.append(room(x, y, width, height, entry))
            x += width + GAP
        y += height + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN - GAP:g}" '
        'font-family="system-ui, sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("rooms.svg").write_text(draw(), encoding="utf-8")
