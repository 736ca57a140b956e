"""The result of a task as JSON: scores, counts, and all that is needed to get them again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from llava.atomic import write_text
from llava.eval.run.answering import Answered, note_path, noted
from llava.eval.run.answers import AnswersFile
from llava.eval.run.asking import Asker
from llava.eval.run.plan import Plan, WatchedData, hashes
from llava.eval.tasks.base import JsonValue, Report, Score, Task, TaskData
from llava.utils import UserError, shortened

PACKAGES = ("llava", "torch", "transformers", "tokenizers", "peft", "numpy", "pillow", "bitsandbytes")
NAMED = 20  # ids that a result lists
Result = dict[str, JsonValue]


def score(task: Task, data: TaskData, answers: AnswersFile, *, part: str = "") -> tuple[Report, Result]:
    """Score an answers file; return the report, and what a result says of it.

    part: says that only some questions were asked. Raises UserError for a file without answers,
    and for answers that belong to other questions.
    """
    if not answers.records:
        broken = f" ({len(answers.broken)} broken lines, {answers.broken[0]})" if answers.broken else ""
        raise UserError(f"{shortened(answers.path)} holds no answers{broken}; nothing can be scored")
    watched = WatchedData.of(data)
    report = task.report(answers.records, watched)
    if report.asked and not report.answered:
        raise UserError(
            f"none of the {len(answers.records)} answers in {shortened(answers.path)} is to a question of "
            f"{task.name}; is it the file of another task or split?"
        )
    notes = [*report.notes]
    if part:
        notes.append(part)
    said: Result = {
        "task": task.name,
        "title": task.title,
        "split": data.split_of(task),
        "options": dict(data.options),
        "scores": [score_of(one) for one in report.scores],
        "counts": {
            "asked": report.asked,
            "answered": report.answered,
            "unparsable": report.unparsable,
            "failed": report.failed,
            "missing": len(report.missing),
            "unexpected": len(report.unexpected),
            "repeated": len(report.repeated),
            "empty": len(report.empty),
            "broken_lines": len(answers.broken),
        },
        "tables": {title: dict(rows) for title, rows in report.tables.items()},
        "notes": notes,
        "missing": list(report.missing[:NAMED]),
        "unexpected": list(report.unexpected[:NAMED]),
        "repeated": list(report.repeated[:NAMED]),
        "empty": list(report.empty[:NAMED]),
        "broken_lines": list(answers.broken[:NAMED]),
        "submission": [str(one) for one in report.written],
        "answers": str(answers.path),
        "data": hashes(task, data, watched.used),
        "data_from": {"root": str(data.root), "files": {key: str(one) for key, one in data.files.items()}},
        "versions": versions(),
    }
    if report.judge:
        said["judge"] = dict(report.judge)
    return report, said | how_made(answers.path)


def score_of(one: Score) -> Result:
    """Return a score as a result has it."""
    return {name: value for name, value in asdict(one).items() if value is not None}


def how_made(answers: Path) -> Result:
    """Return what the note beside an answers file says of the run; empty where there is none."""
    try:
        note = noted(note_path(answers))
        made: Result = {"model": {"id": note["model_id"], **note["settings"], **note.get("facts", {})}}
        if "first_prompt" in note:  # notes of earlier versions lack it
            made["first_prompt"] = note["first_prompt"]
        return made | {"questions_from": dict(note["data"])}
    except (KeyError, TypeError, ValueError):
        return {}


def check_task(task: Task, answers: Path) -> None:
    """Raise UserError when the note beside an answers file says that they are to another task's questions.

    Numbers as ids are those of many benchmarks: other answers would be scored, and look like poor ones.
    """
    note = noted(note_path(answers))
    if "task" in note and note["task"] not in (task.name, *task.answers_of):
        other = shortened(note["task"])
        raise UserError(
            f"{shortened(answers)} holds answers to {other} (says {note_path(answers).name} beside it), and "
            f"{task.name} is to be scored; score {other}, or name the answers to {task.name}"
        )


def judge_before(result: Path) -> str:
    """Return who judged the answers of the result at a path; "" where there is none or nobody did."""
    try:
        return ", ".join(map(str, noted(result)["judge"]["models"])) or "a judge"
    except (LookupError, TypeError):
        return ""


def of_run(plan: Plan, asker: Asker, answered: Answered) -> Result:
    """Return what a result says of the run that made its answers."""
    failed = answered.failures
    return {
        "model": {"id": asker.model_id, **asker.settings, **answered.facts},
        "first_prompt": answered.first_prompt,
        "run": {
            "questions": len(plan.chosen),
            "had_answers": answered.already,
            "asked": answered.asked,
            "without_answer": len(failed),
            "failures": [f"{one.id}: {one.reason}" for one in failed[:NAMED]],
            "endings": dict(answered.endings),
            "seconds": round(answered.seconds, 3),
            "questions_per_second": round(answered.asked / answered.seconds, 3) if answered.seconds else None,
            "repaired_lines": list(answered.repaired),
            "repeated_questions": list(answered.repeated[:NAMED]),
            "limit": plan.limit,
        },
        "questions_from": dict(plan.sources),
    }


def versions() -> dict[str, JsonValue]:
    """Return the versions of what answers and scores depend on, as far as installed."""
    found: dict[str, JsonValue] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_result(path: Path, result: Mapping[str, JsonValue]) -> None:
    """Write a result in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1, default=str) + "\n")


def result_path(answers: Path, given: str | None) -> Path:
    """Return where a result goes: to the named file, or beside the answers."""
    return Path(given) if given else answers.with_name(f"{answers.stem}.result.json")


def scores_text(title: str, scores: Sequence[Score]) -> list[str]:
    """Return scores as lines for a terminal."""
    lines = []
    for one in scores:
        unit = "" if one.unit == "points" else f" {one.unit}"
        line = f"{title:<20} {one.name:<24} {one.value:>8.2f}{unit}  ({one.kind}, n = {one.n:,}"
        if one.stderr is not None:
            line += f", standard error {one.stderr:.2f}"
        if one.low is not None and one.high is not None and one.low != one.high:
            line += f", {one.low:.2f} to {one.high:.2f} with what could not be parsed"
        lines.append(line + ")")
    return lines
