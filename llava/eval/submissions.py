"""What the servers of benchmarks take: the reference's converters and the tasks write their files here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llava.atomic import write_text


def gqa_answer(text: str) -> str:
    """Return an answer as the official eval.py of GQA wants it, without the periods at its end."""
    return text.rstrip(".").lower()


def write_json(target: Path | None, rows: Sequence[object]) -> list[Path]:
    """Write a submission as one JSON line, as the reference does. None: none. Returns what was written."""
    return _written(target, json.dumps(rows))


def write_lines(target: Path | None, rows: Iterable[object]) -> list[Path]:
    """Write a submission of JSON lines; None writes none. Returns what was written."""
    return _written(target, "".join(f"{json.dumps(row)}\n" for row in rows))


def _written(target: Path | None, text: str) -> list[Path]:
    if target is None:
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return [target]


# ---- SEED-Bench ----


def seed_id(identity: object) -> str | int:
    """Return the id of SEED-Bench's question in the reference's question file: a number if it can be one."""
    try:
        return int(str(identity))
    except ValueError:
        return str(identity)


def seed_rows(identities: Iterable[object], said: Mapping[str, str]) -> list[dict[str, object]]:
    """Return the lines for SEED-Bench's leaderboard, ids as in SEED-Bench.json, without those unanswered."""
    return [
        {"question_id": one, "prediction": said[str(seed_id(one))]}
        for one in identities
        if str(seed_id(one)) in said
    ]
