"""Makes a small training set of coloured squares to try commands on: captions, dialogs, tar shards."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
SHARDS = 4
SHAPES = ((64, 48), (48, 64), (96, 40), (56, 56))  # (width, height)


def colour_of(number: int) -> str:
    """Return the colour of image `number`."""
    return COLOURS[number % len(COLOURS)]


def image_of(number: int) -> Image.Image:
    """Draw image `number`: one colour, in one of several shapes."""
    return Image.new("RGB", SHAPES[number % len(SHAPES)], colour_of(number))


def caption(number: int) -> dict[str, Any]:
    """Make a record of stage 1."""
    turns = [("human", "<image>\nDescribe it."), ("gpt", f"A {colour_of(number)} square.")]
    return _record(number, [number], turns)


def dialog(number: int) -> dict[str, Any]:
    """Make a record of stage 2: every fourth is a text, every eighth of the others has two images."""
    if number % 4 == 3:
        turns = [("human", f"What is {number} plus one?"), ("gpt", f"It is {number + 1}.")]
        return _record(number, [], turns)
    if number % 8 == 4:
        first, second = colour_of(number), colour_of(number + 1)
        turns = [("human", "First <image> then <image>\nWhich colours?"), ("gpt", f"{first}, then {second}.")]
        return _record(number, [number, number + 1], turns)
    turns = [("human", "<image>\nWhich colour is it?"), ("gpt", f"It is {colour_of(number)}.")]
    turns += [("human", "Is it red?"), ("gpt", "Yes." if colour_of(number) == "red" else "No.")]
    return _record(number, [number], turns)


def _record(number: int, images: list[int], turns: list[tuple[str, str]]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": f"{number:04d}"}
    names = [f"{one:04d}.png" for one in images]
    if names:
        record["image"] = names[0] if len(names) == 1 else names
    return {**record, "conversations": [{"from": who, "value": text} for who, text in turns]}


def write(folder: Path, count: int) -> None:
    """Write images/, pretrain.json, finetune.json and shards/*.tar."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "shards").mkdir(exist_ok=True)
    for number in range(count + 1):  # the last dialog may show one more
        image_of(number).save(folder / "images" / f"{number:04d}.png")
    records = [dialog(number) for number in range(count)]
    (folder / "pretrain.json").write_text(json.dumps([caption(number) for number in range(count)], indent=1))
    (folder / "finetune.json").write_text(json.dumps(records, indent=1))
    for number in range(SHARDS):
        with tarfile.open(folder / "shards" / f"colours-{number:03d}.tar", "w") as archive:
            for record in records[number::SHARDS]:
                _add_sample(archive, record, folder / "images")


def _add_sample(archive: tarfile.TarFile, record: dict[str, Any], images: Path) -> None:
    """Add a record as KEY.json, and its images as KEY.png, or KEY.0.png, KEY.1.png."""
    key = record["id"]
    names = record.pop("image", [])
    names = names if isinstance(names, list) else [names]
    for place, name in enumerate(names):
        ending = "png" if len(names) == 1 else f"{place}.png"
        _add(archive, f"{key}.{ending}", (images / name).read_bytes())
    _add(archive, f"{key}.json", json.dumps(record).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def main() -> None:
    """Write the data."""
    parser = argparse.ArgumentParser(prog="python -m playground.colours", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the data goes")
    parser.add_argument("--count", type=int, default=64, help="records of each kind (default: %(default)s)")
    args = parser.parse_args()
    write(args.folder, args.count)
    print(f"{args.count} captions, {args.count} dialogs and {SHARDS} shards are in {args.folder}")


if __name__ == "__main__":
    main()
