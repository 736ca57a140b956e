"""Many questions to a judge: what is there is kept, the rest is asked, what failed is counted and named."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from llava.eval.judges.cache import ReplyCache, prompt_key
from llava.eval.judges.client import Judge, JudgeFailed, Message, Reply
from llava.eval.judges.cost import Estimate, estimate
from llava.eval.judges.replies import Scale, UnreadableReply, value_of
from llava.eval.judges.settings import JudgeSettings
from llava.eval.tasks.base import Record
from llava.eval.tasks.files import read_lines
from llava.lines import LineFile
from llava.utils import UserError, shortened

logger = logging.getLogger(__name__)

READ_AGAIN = 1  # a reply without scores is asked for once more: hosted judges vary also at temperature 0
GIVE_UP_AFTER = 5  # failures in a row before anything was judged


@dataclass(frozen=True)
class Item:
    """One thing to judge. row: the fields of its line that come before the judgement."""

    id: str | int
    messages: tuple[Message, ...]
    row: Record


@dataclass
class Outcome:
    """What judging gave. lines: by question, in the questions' order; failed, unreadable: question and why.

    kept: lines that were there before; cached: replies from the cache; retries: requests sent again.
    """

    lines: dict[str | int, Record] = field(default_factory=dict)
    failed: dict[str | int, str] = field(default_factory=dict)
    unreadable: dict[str | int, str] = field(default_factory=dict)
    kept: int = 0
    cached: int = 0
    retries: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """The judges' names, as the servers gave them; "" for lines that do not say."""
        return sorted({str(line.get("judge_model", "")) for line in self.lines.values()})

    @property
    def n_asked(self) -> int:
        """How many questions there were."""
        return len(self.lines) + len(self.failed) + len(self.unreadable)

    def complaint(self) -> str:
        """Say which questions have no judgement, and why; "" if all have one."""
        lost = {**self.failed, **self.unreadable}
        if not lost:
            return ""
        first, why = next(iter(lost.items()))
        return (
            f"{len(lost)} of {self.n_asked} questions have no judgement and count nowhere "
            f"({len(self.unreadable)} replies without scores, {len(self.failed)} requests that failed), the "
            f"first is {shortened(first, 60)}: {why}; run again to ask these only"
        )


def judge_all(
    items: Sequence[Item], settings: JudgeSettings, output: Path, *, scale: Scale, dry_run: bool = False
) -> Outcome:
    """Judge what `output` holds no judgement of, and return all; each is on the disk when it counts.

    output: JSON lines, each item's row and `content` (the reply), the score in the scale's field, and
    `judge_model` (as the server named it), `judge_asked`, `judge_prompt`. dry_run: only log the cost.
    Raises UserError for an output of other answers or another judge, and for a judge that cannot be asked.
    """
    check_items(items)
    outcome = Outcome(lines=dict(kept_lines(items, settings.model, output, scale)))
    outcome.kept = len(outcome.lines)
    left = [one for one in items if one.id not in outcome.lines]
    if not left:
        return outcome
    judge = Judge(settings)
    cache = ReplyCache(settings.cache or output.parent / "judge-cache", judge)
    replies = {one.id: reply for one in left if (reply := cache.get(one.messages)) is not None}
    fresh = [one for one in left if one.id not in replies]
    logger.warning("%s", estimate_of(fresh, settings))
    if dry_run:
        return outcome
    if fresh and (date := judge.shutdown_date()):
        outcome.notes.append(
            f"the judge {settings.model} shuts down on {date}: its numbers cannot be repeated then"
        )
        logger.warning("%s", outcome.notes[-1])
    with LineFile(output) as file:
        for item in left:
            if item.id in replies:
                outcome.cached += 1
                _keep(item, replies[item.id], settings, scale, outcome, file)
        for item, found in _ask_all(judge, fresh, scale):
            if isinstance(found, Reply):
                outcome.retries += found.retries
                cache.put(item.messages, found)
                _keep(item, found, settings, scale, outcome, file)
            elif isinstance(found, UnreadableReply):
                outcome.unreadable[item.id] = str(found)
            else:
                outcome.retries += found.retries
                outcome.failed[item.id] = str(found)
        outcome.lines = {one.id: outcome.lines[one.id] for one in items if one.id in outcome.lines}
        file.rewrite(lambda: [json.dumps(line) for line in outcome.lines.values()])
    outcome.notes += judge.notes
    return outcome


def reviewed(items: Sequence[Item], output: Path, scale: Scale) -> Outcome:
    """Return the judgements that a file holds, whoever judged; nobody is asked. Raises UserError."""
    if not output.is_file():
        raise UserError(f"there are no reviews at {output}; name a judge with --judge-model to have some")
    outcome = Outcome(lines=dict(kept_lines(items, None, output, scale)))
    outcome.kept = len(outcome.lines)
    outcome.unreadable = {
        one.id: f"{output} has no score of it" for one in items if one.id not in outcome.lines
    }
    return outcome


def check_items(items: Sequence[Item]) -> None:
    """Raise UserError for a question that comes twice, and for none."""
    seen: set[str | int] = set()
    for item in items:
        if item.id in seen:
            raise UserError(
                f"the question {shortened(item.id, 60)} comes twice; give each question an id of its own"
            )
        seen.add(item.id)
    if not items:
        raise UserError("there is nothing to judge: the files hold no questions with answers")


def estimate_of(items: Sequence[Item], settings: JudgeSettings) -> Estimate:
    """Estimate what asking about the items costs."""
    return estimate(([message["content"] for message in one.messages] for one in items), settings)


def kept_lines(
    items: Sequence[Item], model: str | None, output: Path, scale: Scale
) -> Iterator[tuple[str | int, Record]]:
    """Yield the judgements that a file holds, in its order, but for those without a score.

    model: the judge; None for any.
    """
    if not output.exists():
        return
    with LineFile(output) as file:
        file.mend()
    by_id = {str(one.id): one for one in items}  # 1 and "1" are one question
    for line in read_lines(output, {"question_id": (int, str)}):
        key = line["question_id"]
        assert isinstance(key, str | int)
        item = by_id.get(str(key))
        if item is None:
            raise UserError(
                f"{output} holds a judgement of question {shortened(key, 60)}, which is not among those "
                "to judge; "
                "name another file (--output, of a task --reviews), or remove this one"
            )
        _check_same(item, line, model, output)
        if value_of(line, scale) is not None:
            yield item.id, line


def _check_same(item: Item, line: Record, model: str | None, output: Path) -> None:
    """Raise UserError where a kept line is about another answer, or of another judge."""
    names = [name for name in item.row if name.endswith("_id") and name in line]
    prompt = line.get("judge_prompt", prompt_key(item.messages))
    if any(str(line[name]) != str(item.row[name]) for name in names) or prompt != prompt_key(item.messages):
        raise UserError(
            f"{output} holds a judgement of question {shortened(item.id, 60)} that was made of other "
            "answers, or by "
            "another rule; name another file (--output, of a task --reviews), or remove this one"
        )
    asked = line.get("judge_asked", model)
    if model is not None and asked != model:
        raise UserError(
            f"{output} holds judgements of {shortened(asked, 60)!r}, while --judge-model is "
            f"{model!r}; "
            "numbers of two judges do not mix: name another file (--output, of a task --reviews), or "
            "remove this one"
        )


def _keep(
    item: Item, reply: Reply, settings: JudgeSettings, scale: Scale, outcome: Outcome, file: LineFile
) -> None:
    """Write the line of one judgement."""
    line: Record = {
        **item.row,
        "content": reply.text,
        scale.field: scale.read(reply.text),
        "judge_model": reply.model,
        "judge_asked": settings.model,
        "judge_prompt": prompt_key(item.messages),
    }
    file.append([json.dumps(line)])
    outcome.lines[item.id] = line


def _ask_all(
    judge: Judge, items: Sequence[Item], scale: Scale
) -> Iterator[tuple[Item, Reply | UnreadableReply | JudgeFailed]]:
    """Yield each item with what asking about it gave, as it comes; several are asked at a time."""
    pool = ThreadPoolExecutor(judge.settings.parallel)
    try:
        running: dict[Future[Reply], Item] = {pool.submit(_ask, judge, one, scale): one for one in items}
        judged, in_a_row = 0, 0
        for future in as_completed(running):
            found: Reply | UnreadableReply | JudgeFailed
            try:
                found = future.result()
                judged += 1
            except (UnreadableReply, JudgeFailed) as error:
                found = error
                in_a_row += isinstance(error, JudgeFailed)
            if not judged and in_a_row >= min(GIVE_UP_AFTER, len(items)):
                raise UserError(f"the judge answers nothing: {found}")
            yield running[future], found
    finally:
        judge.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _ask(judge: Judge, item: Item, scale: Scale) -> Reply:
    """Return a reply that can be read; raises UnreadableReply or JudgeFailed."""
    retries = 0
    for left in range(READ_AGAIN, -1, -1):
        reply = judge.ask(item.messages)
        retries += reply.retries
        try:
            scale.read(reply.text)
            return Reply(reply.text, reply.model, retries + READ_AGAIN - left)
        except UnreadableReply:
            if not left:
                raise
    raise AssertionError("unreachable")
