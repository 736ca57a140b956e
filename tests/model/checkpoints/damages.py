"""Ways to damage a checkpoint folder: a file as a whole, and single values of its JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "preprocessor_config.json",
)

# what a value of a JSON file is replaced by
WRONG_VALUES: dict[str, Any] = {
    "null": None,
    "text": "none of these",
    "zero": 0,
    "negative": -3,
    "huge": 10**15,
    "list": ["a", 1],
}


def _rubbish(content: bytes) -> bytes:
    return bytes(range(256)) * 8


def _truncated(content: bytes) -> bytes:
    return content[: max(1, len(content) * 2 // 3)]


def _wrong_type(content: bytes) -> bytes:
    return b'["a", 1]'


def _deep(content: bytes) -> bytes:
    return b"[" * 200_000


def _zeros(content: bytes) -> bytes:
    return bytes(len(content))


# name -> what is done to the file's content; None removes the file
DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "missing": None,
    "empty": lambda content: b"",
    "truncated": _truncated,
    "rubbish": _rubbish,
    "wrong type": _wrong_type,
    "deeply nested": _deep,
    "zeros": _zeros,
}


def damage_file(file: Path, how: str) -> None:
    """Damage one file in a way of DAMAGES."""
    change = DAMAGES[how]
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))


def fields_of(file: Path) -> list[str]:
    """List the fields of a JSON file, those of objects in it as `outer.inner`."""
    content = json.loads(file.read_text())
    return list(_paths(content, "")) if isinstance(content, dict) else []


def _paths(content: dict[str, Any], before: str) -> Iterator[str]:
    for name, value in content.items():
        yield before + name
        if isinstance(value, dict) and "." not in before:
            yield from _paths(value, f"{before}{name}.")


def damage_value(file: Path, field: str, value: Any) -> None:
    """Set a field of a JSON file to another value."""
    content = json.loads(file.read_text())
    *outer, name = field.split(".")
    place = content
    for part in outer:
        place = place[part]
    place[name] = value
    file.write_text(json.dumps(content))
