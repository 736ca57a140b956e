"""Asking the questions of a plan: answers go to a file one by one, what it has is not asked again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.atomic import obstacle, write_text
from llava.eval.run.answers import AnswersFile, Matched, Matcher, line_of, read_answers
from llava.eval.run.asking import Asker, answer_id
from llava.eval.run.plan import Plan
from llava.eval.run.processes import Processes
from llava.eval.run.progress import Progress
from llava.eval.tasks.base import JsonValue, Record, Said
from llava.eval.tasks.grading import some_of
from llava.lines import LineFile
from llava.utils import UserError, shortened

logger = logging.getLogger(__name__)

TOLD = 10  # failed questions that are named in the log
_WINDOW = 4096  # questions that are handed to the model at a time
_TOLD_ALONE = ("facts", "first_prompt")  # what a note tells and no answer depends on


@dataclass(frozen=True)
class Failure:
    """A question that has no answer, and why."""

    id: str | int
    reason: str


@dataclass(frozen=True)
class Answered:
    """What a run of `answer_plan` did.

    already: answers that the file had. asked: questions that were asked now. endings: how many of the new
    answers ended how. first_prompt: as the model gets it. repaired: what was wrong with lines of the file.
    repeated: ids of questions that stand in the data more than once, prompt and all; each is asked. facts:
    what the model tells of itself, and in lists what it told earlier runs that made answers of the file.
    """

    records: tuple[Record, ...]
    already: int
    asked: int
    failures: tuple[Failure, ...]
    endings: Mapping[str, int]
    seconds: float
    first_prompt: str
    repaired: tuple[str, ...] = ()
    repeated: tuple[str | int, ...] = ()
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


def note_path(answers: Path) -> Path:
    """Return the file beside an answers file that says how its answers were made."""
    return answers.with_name(f"{answers.stem}.run.json")


def noted(file: Path) -> dict[str, Any]:
    """Return the object in a note or a result; empty where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def answer_plan(
    plan: Plan,
    asker: Asker,
    answers: Path | None,
    *,
    start_over: bool = False,
    processes: Processes | None = None,
    quiet: bool = False,
) -> Answered:
    """Ask what has no answer yet; every answer is on the disk before the next ones are taken.

    answers: the file that they are appended to, each as the record that the reference writes, and that is
    resumed; None keeps them here alone. At the end its lines stand in the order of the questions. Processes
    of a launcher, or started by hand with other shards, may share the file. start_over: drop what it has.
    Raises UserError where the file holds answers of another model, other settings or other questions.
    """
    processes = processes or Processes()
    first_prompt = asker.render(plan.asks[plan.chosen[0]]) if plan.chosen else ""
    matcher = Matcher(plan.task, plan.asks)
    file = None if answers is None else LineFile(answers)
    repaired: tuple[str, ...] = ()
    if file is not None:
        target = file
        told = processes.together(
            lambda: (
                _prepare(plan, asker, matcher, target, first_prompt, start_over=start_over)
                if processes.is_first
                else ()
            )
        )
        repaired = processes.gather(told)[0]
    before = _matched(matcher, file).answered
    own = plan.chosen[processes.rank :: processes.count]
    pending = [place for place in own if place not in before]
    progress = Progress(
        plan.task.title, len(own), len(own) - len(pending), quiet=quiet or not processes.is_first
    )
    made, failures, endings = processes.together(lambda: _ask(plan, asker, pending, file, progress))
    progress.end()
    if file is not None:
        file.close()
    failed = [one for part in processes.gather(failures) for one in part]
    counted = [dict(part) for part in processes.gather(endings)]
    facts: Mapping[str, JsonValue] = asker.facts
    shared = [pair for part in processes.gather(made if file is None else []) for pair in part]
    if file is None:
        records = tuple(record for _, record in sorted(shared, key=lambda one: one[0]))
    else:
        if processes.is_first:
            _put_in_order(matcher, file)
            facts = _write_note(plan, asker, file.path, first_prompt)
        processes.wait()
        records = _matched(matcher, file).records
    if processes.is_first:
        _tell(failed)
        _tell_repeated(matcher.repeated(), plan)
    return Answered(
        records,
        already=len(set(plan.chosen) & before),
        asked=sum(processes.gather(len(pending))),
        failures=tuple(failed),
        endings=_summed(counted),
        seconds=progress.seconds,
        first_prompt=first_prompt,
        repaired=repaired,
        repeated=tuple(matcher.repeated()),
        facts=facts,
    )


def _ask(
    plan: Plan, asker: Asker, pending: list[int], file: LineFile | None, progress: Progress
) -> tuple[list[tuple[int, Record]], list[Failure], dict[str, int]]:
    """Ask questions; return (place, record) of the answers, what failed, and how the answers ended."""
    made: list[tuple[int, Record]] = []
    failures: list[Failure] = []
    endings: dict[str, int] = {}
    for start in range(0, len(pending), _WINDOW):
        asks = {place: plan.asks[place] for place in pending[start : start + _WINDOW]}
        for outcome in asker.answer(asks):
            ask = asks[outcome.index]
            progress.add(failed=outcome.error is not None)
            if outcome.error is not None:
                failures.append(Failure(ask.id, outcome.error))
                continue
            record = plan.task.record(ask, Said(outcome.text, asker.model_id, answer_id()))
            if file is not None:
                file.append([line_of(record)])
            else:
                made.append((outcome.index, record))
            endings[outcome.finish_reason] = endings.get(outcome.finish_reason, 0) + 1
    return made, failures, endings


# ---- the file, before and after ----


def _prepare(
    plan: Plan, asker: Asker, matcher: Matcher, file: LineFile, first_prompt: str, *, start_over: bool
) -> tuple[str, ...]:
    """Check that a file can be resumed, and mend it; returns what was wrong with its lines."""
    path, note = file.path, note_path(file.path)
    if (reason := obstacle(path, folder=False)) or (reason := obstacle(note, folder=False)):
        raise UserError(
            f"answers cannot be written to {shortened(path)}: {reason}; name another with --answers"
        )
    if start_over:
        path.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    repaired: tuple[str, ...] = ()
    if path.exists() and path.stat().st_size:
        _check_note(note, _note(plan, asker), path, plan)
        found = read_answers(path)
        repaired = _mend(file, found)
        matched = matcher.match(found.records)
        _check_records(matched, found, asker, plan, has_note=note.exists())
    else:
        note.unlink(missing_ok=True)  # of answers that are gone
    note.parent.mkdir(parents=True, exist_ok=True)
    _write_note(plan, asker, path, first_prompt)
    return repaired


def _mend(file: LineFile, found: AnswersFile) -> tuple[str, ...]:
    """Remove broken lines, and name them."""
    if not found.broken:
        file.mend()
        return ()
    for one in found.broken:
        logger.warning("%s: %s; its question is asked again", file.path, one)
    file.rewrite(lambda: [line_of(one) for one in read_answers(file.path).records])
    return found.broken


def _write_note(plan: Plan, asker: Asker, answers: Path, first_prompt: str) -> dict[str, JsonValue]:
    """Write how answers are made; returns the model's facts, in lists also what earlier runs noted."""
    facts = dict(asker.facts)
    path = note_path(answers)
    try:
        before = noted(path)
        first_prompt = first_prompt or before["first_prompt"]  # a part without questions has none
        for name, value in facts.items():
            earlier = before["facts"].get(name)
            if isinstance(value, list) and isinstance(earlier, list):
                facts[name] = sorted({*map(str, value), *map(str, earlier)})
    except (LookupError, TypeError, AttributeError):
        pass  # there is none, or one of an earlier version
    note = {**_note(plan, asker), "facts": facts, "first_prompt": first_prompt}
    write_text(path, json.dumps(note, indent=1, default=str) + "\n")
    return facts


def _note(plan: Plan, asker: Asker) -> dict[str, JsonValue]:
    """Return what the answers depend on; how they are scored is no part of it."""
    scoring = _scoring(plan)
    return {
        "task": plan.task.name,
        "split": plan.data.split_of(plan.task),
        "options": {key: one for key, one in plan.data.options.items() if key not in scoring},
        "data": plan.sources,
        "model_id": asker.model_id,
        "settings": asker.settings,
    }


def _scoring(plan: Plan) -> set[str]:
    """Return the options that concern the score alone."""
    return {one.key for one in plan.task.options if one.scoring}


def _check_note(note: Path, wanted: Mapping[str, JsonValue], answers: Path, plan: Plan) -> None:
    """Raise UserError if the answers of a file were made in another way than is wanted now."""
    if not note.exists():
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        was = dict(_flat(found))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{shortened(note)} cannot be read ({error}); it says how the answers in {shortened(answers)} "
            "were made. Remove it if you know that they are of this model and these settings"
        ) from error
    now = dict(_flat(json.loads(json.dumps(wanted, default=str))))
    free = {f"options.{key}" for key in _scoring(plan)}  # earlier versions noted them
    changed = [
        f"{name} was {shortened(was.get(name), 80)} and is {shortened(now.get(name), 80)}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
        and not name.endswith(".path")
        and name not in free
        and name.partition(".")[0] not in _TOLD_ALONE
    ]
    if changed:
        raise UserError(
            f"{shortened(answers)} holds answers that were made otherwise: {'; '.join(changed)}. Name "
            "another file with --answers, or drop these answers with --start-over"
        )


def _flat(values: Mapping[str, JsonValue], before: str = "") -> Iterable[tuple[str, JsonValue]]:
    """Yield the leaves of nested objects with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _check_records(matched: Matched, found: AnswersFile, asker: Asker, plan: Plan, *, has_note: bool) -> None:
    """Raise UserError if a file's answers are to other questions, or another model's."""
    if found.records and not matched.records:
        raise UserError(
            f"none of the {len(found.records)} answers in {shortened(found.path)} is to a question of "
            f"{plan.task.name} as it is asked now; name another file with --answers, or drop "
            "them with --start-over"
        )
    models = {str(one["model_id"]) for one in matched.records if "model_id" in one}
    if other := sorted(models - {asker.model_id}):
        raise UserError(
            f"{shortened(found.path)} holds answers of {', '.join(other[:3])}, and {asker.model_id} is asked "
            "now; name another file with --answers, or drop these answers with --start-over"
        )
    if found.records and not has_note:
        logger.warning(
            "%s does not say with which settings its %d answers were made (there is no %s); they are kept",
            found.path, len(found.records), note_path(found.path).name,
        )  # fmt: skip
    if matched.unexpected:
        logger.warning(
            "%s: %d answers are to no question of %s as it is asked now; they are kept and not counted",
            found.path, len(matched.unexpected), plan.task.name,
        )  # fmt: skip


def _matched(matcher: Matcher, file: LineFile | None) -> Matched:
    exists = file is not None and file.path.exists()
    return matcher.match(read_answers(file.path).records if file and exists else ())


def _put_in_order(matcher: Matcher, file: LineFile) -> None:
    """Let the answers stand in the order of their questions; others follow."""

    def lines() -> list[str]:
        found = _matched(matcher, file)
        return [line_of(one) for one in (*found.records, *found.surplus, *found.unexpected)]

    if file.path.exists():
        file.rewrite(lines)


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total


def _tell(failed: list[Failure]) -> None:
    """Name questions that have no answer."""
    for one in failed[:TOLD]:
        logger.warning("question %s has no answer: %s", one.id, one.reason)
    if len(failed) > TOLD:
        logger.warning("%d more questions have no answer", len(failed) - TOLD)


def _tell_repeated(repeated: list[str | int], plan: Plan) -> None:
    """Name questions that stand in the data more than once."""
    if repeated:
        logger.warning(
            "%s: %d questions stand in the data more than once and were asked as often: %s",
            plan.task.name, len(repeated), some_of(repeated),
        )  # fmt: skip
