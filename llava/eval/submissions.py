"""What the servers of benchmarks take: the reference's converters and the tasks write their files here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llava.atomic import atomic_file, write_text
from llava.eval.metrics.vqa import m4c_answer
from llava.utils import import_optional


def gqa_answer(text: str) -> str:
    """Return an answer as the official eval.py of GQA wants it, without the periods at its end."""
    return text.rstrip(".").lower()


def write_json(target: Path | None, rows: Sequence[object] | Mapping[str, object]) -> list[Path]:
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


# ---- VQAv2, VizWiz ----


def vqav2_rows(identities: Iterable[object], said: Mapping[str, str]) -> list[dict[str, object]]:
    """Return what VQAv2's server takes: a normalised answer to each of its ids; a missing one is ""."""
    return [{"question_id": one, "answer": m4c_answer(said.get(str(one), ""))} for one in identities]


def vizwiz_rows(images: Iterable[tuple[object, str]], said: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what VizWiz takes; images: id and name of the image of each question that was answered."""
    return [
        {"image": image, "answer": m4c_answer(said[str(one)])} for one, image in images if str(one) in said
    ]


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


# ---- MME ----


def write_mme(target: Path | None, told: Iterable[tuple[Mapping[str, object], str, str]]) -> list[Path]:
    """Write the folder of CATEGORY.txt that MME's calculation.py reads; None writes none.

    told: of each answer its annotation (question, answer, category), `category/name` of the image, and text.
    A tab or a line break in an answer would break the file and is written as a space.
    """
    if target is None:
        return []
    files: dict[str, list[str]] = {}
    for row, place, text in told:
        cells = [
            f"{place.partition('/')[2]}.txt",
            str(row["question"]),
            str(row["answer"]),
            " ".join(text.split()),
        ]
        files.setdefault(str(row["category"]), []).append("\t".join(cells) + "\n")
    target.mkdir(parents=True, exist_ok=True)
    return [path for name, rows in files.items() for path in _written(target / f"{name}.txt", "".join(rows))]


# ---- MMBench ----

MMBENCH_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
# What a cell of a workbook cannot hold.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def write_mmbench(target: Path | None, table: Path, said: Mapping[str, str]) -> list[Path]:
    """Write the workbook that MMBench's server took: the table with a column `prediction`; None writes none.

    said: index -> answer. Control characters, which no cell can hold, are omitted. Needs pandas and openpyxl.
    """
    if target is None:
        return []
    pandas = import_optional("pandas", needed_for="writing MMBench's .xlsx", install="llava[eval]")
    import_optional("openpyxl", needed_for="writing MMBench's .xlsx", install="llava[eval]")
    frame = pandas.read_table(table)
    frame = frame.drop(columns=[one for one in MMBENCH_DROPPED if one in frame.columns])
    told = [said.get(str(index)) for index in frame["index"]]
    told = [one if one is None else _CONTROL.sub("", one) for one in told]
    frame.insert(min(6, len(frame.columns)), "prediction", pandas.Series(told, dtype=object))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as scratch, scratch.open("wb") as file:
        frame.to_excel(file, index=False, engine="openpyxl")
    return [target]
