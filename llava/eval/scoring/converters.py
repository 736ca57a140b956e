"""From answers files to what the servers of benchmarks take: the reference's scripts/convert_*.py."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from llava.eval.run.answers import AnswersFile, read_answers
from llava.eval.submissions import (
    gqa_answer,
    seed_id,
    seed_rows,
    vizwiz_rows,
    vqav2_rows,
    write_json,
    write_lines,
    write_mmbench,
)
from llava.eval.tasks.base import JsonValue
from llava.eval.tasks.files import ID, TEXT, check_row, check_rows, read_lines, read_object
from llava.eval.tasks.grading import some_of
from llava.utils import UserError

VQAV2_QUESTIONS = "llava_vqav2_mscoco_test2015.jsonl"


def said_in(path: Path) -> tuple[dict[str, str], AnswersFile]:
    """Return id -> answer of an answers file, the last one of an id, and the file with its broken lines.

    Broken lines, and questions with several answers, are named on standard error: what is printed is the
    reference's.
    """
    found = read_answers(path)
    if not found.records:
        raise UserError(f"{path} holds no answer; expected one JSON object a line")
    for number, record in enumerate(found.records, start=1):
        check_row(record, {"question_id": ID, "text": TEXT}, f"{path}, record {number}")
    times = Counter(str(one["question_id"]) for one in found.records)
    if several := [name for name, count in times.items() if count > 1]:
        told = f"{len(several)} questions have several answers, the last one counts: {some_of(several)}"
        print(f"{path}: {told}", file=sys.stderr)
    if found.broken:
        told = f"{len(found.broken)} lines are broken and have no answer: {'; '.join(found.broken[:5])}"
        print(f"{path}: {told}{' ...' if len(found.broken) > 5 else ''}", file=sys.stderr)
    return {str(one["question_id"]): str(one["text"]) for one in found.records}, found


def _whole(path: Path) -> tuple[dict[str, str], AnswersFile]:
    """Return the same of a file without a broken line; raises UserError, as the reference fails at one."""
    if broken := read_answers(path).broken:
        raise UserError(
            f"{path}: {len(broken)} lines are broken, the first: {broken[0]}; `python -m llava.eval answer` "
            "asks their questions again"
        )
    return said_in(path)


def convert_gqa(source: Path, target: Path) -> None:
    """Write the predictions that GQA's eval.py reads."""
    write_json(
        target,
        [
            {"questionId": one["question_id"], "prediction": gqa_answer(str(one["text"]))}
            for one in _whole(source)[1].records
        ],
    )


def convert_mmvet(source: Path, target: Path) -> None:
    """Write the answers that MM-Vet's judge reads, by `v1_` and the id."""
    answers: Mapping[str, JsonValue] = {
        f"v1_{one['question_id']}": one["text"] for one in _whole(source)[1].records
    }
    write_json(target, answers)


def _counted(said: Mapping[str, str], total: int, found: AnswersFile) -> str:
    return f"total results: {len(said)}, total split: {total}, error_line: {len(found.broken)}"


def convert_vqav2(folder: Path, ckpt: str, split: str) -> None:
    """Write an answer to each question of test2015, "" where there is none; prints the counts."""
    said, found = said_in(folder / "answers" / split / ckpt / "merge.jsonl")
    questions = read_lines(folder / VQAV2_QUESTIONS, {"question_id": ID})
    print(_counted(said, len(questions), found))
    rows = vqav2_rows([one["question_id"] for one in questions], said)
    write_json(folder / "answers_upload" / split / f"{ckpt}.json", rows)


def convert_vizwiz(annotations: Path, source: Path, target: Path) -> None:
    """Write an answer to each image; prints the counts. Raises UserError where one has no answer."""
    said, found = said_in(source)
    questions = read_lines(annotations, {"question_id": ID, "image": TEXT})
    print(_counted(said, len(questions), found))
    images = [(one["question_id"], str(one["image"])) for one in questions]
    if lacking := [identity for identity, _ in images if str(identity) not in said]:
        raise UserError(
            f"{source}: {len(lacking)} of {len(images)} questions have no answer, the first is {lacking[0]!r}"
            "; VizWiz takes whole submissions only"
        )
    write_json(target, vizwiz_rows(images, said))


def convert_mmbench(annotations: Path, source: Path, target: Path) -> None:
    """Write the workbook that MMBench's server took, with a column of predictions."""
    said, _ = _whole(source)
    write_mmbench(target, annotations, said)


def convert_seed(annotations: Path, source: Path, target: Path) -> None:
    """Print accuracies by kind of question and medium, and write the lines for the leaderboard."""
    fields = {"question_id": ID, "question_type_id": ID, "data_type": TEXT, "answer": TEXT}
    whole = read_object(annotations, {"questions": list, "question_type": dict})
    questions = {
        str(seed_id(one["question_id"])): one for one in check_rows(whole["questions"], fields, annotations)
    }
    said, _ = _whole(source)
    if unknown := [one for one in said if one not in questions]:
        raise UserError(f"{source}: {annotations} has no question {unknown[0]!r}; expected other answers")
    hits: dict[str, list[bool]] = {}
    for key, text in said.items():
        one = questions[key]
        for name in (f"kind {one['question_type_id']}", "total", str(one["data_type"])):
            hits.setdefault(name, []).append(text == one["answer"])
    kinds = whole["question_type"]
    assert isinstance(kinds, Mapping)
    rows = [(name, f"kind {number}") for name, number in kinds.items()]
    rows += [("Total accuracy", "total"), ("image accuracy", "image"), ("video accuracy", "video")]
    for called, name in rows:
        if name in hits:
            print(f"{called}: {100 * sum(hits[name]) / len(hits[name]):.2f}%")
    write_lines(target, seed_rows([one["question_id"] for one in questions.values()], said))
