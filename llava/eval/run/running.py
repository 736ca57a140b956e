"""Asking and scoring tasks with one model, which is loaded once; what is told, and the exit code."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from llava.atomic import write_text
from llava.eval.comparing.page import page_of
from llava.eval.comparing.pairs import (
    compare,
    comparison_result,
    comparison_text,
    graded_line,
    graded_path,
    result_of,
)
from llava.eval.run.answering import Answered, answer_plan
from llava.eval.run.answers import read_answers
from llava.eval.run.asking import Asker
from llava.eval.run.flags import DONE, INCOMPLETE
from llava.eval.run.opening import Opener
from llava.eval.run.places import check_places, place_of_answers, refuse_overwriting
from llava.eval.run.plan import Plan, Shard, make_plan
from llava.eval.run.processes import Processes
from llava.eval.run.results import (
    Result,
    check_task,
    judge_before,
    of_run,
    result_path,
    score,
    scores_text,
    write_result,
)
from llava.eval.tasks.base import Report, Task, TaskData
from llava.eval.tasks.grading import some_of
from llava.eval.tasks.judged.judgement import judge_of, rules_of


@dataclass(frozen=True)
class Done:
    """What became of a task, and the exit code: 1 where questions have no answer or lines were broken."""

    code: int
    report: Report | None = None
    result: Result = field(default_factory=dict)


class Run:
    """Tasks that are put to one model, as the flags say."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._opener = Opener(args)
        self._processes = Processes()

    @property
    def model_id(self) -> str:
        """What records call the model; of a server, once it was asked."""
        return self._opener.model_id

    @property
    def is_first(self) -> bool:
        """Whether this process tells and writes what is done once."""
        return self._processes.is_first

    def answer(self, task: Task, data: TaskData, answers: str | None) -> Done:
        """Ask a task; its answers are in the file then."""
        check_places(task, data, answers=answers, asks=True)
        _, _, path, answered = self._ask(task, data, answers)
        code = INCOMPLETE if answered.failures else DONE
        self._say(f"{len(answered.records):,} answers in {path}")
        return Done(code)

    def answer_and_score(self, task: Task, data: TaskData, answers: str | None, output: str | None) -> Done:
        """Ask a task, score it and write the result; every process returns the same."""
        check_places(task, data, answers=answers, output=output, asks=True, scores=True)
        judge_of(data)
        rules_of(data)
        task.check_scoring(data)
        plan, asker, path, answered = self._ask(task, data, answers)
        run = of_run(plan, asker, answered)

        def scored() -> Done:
            if not self._processes.is_first:
                return Done(DONE)
            return score_file(task, data, path, output, run=run, part=plan.part)

        done = self._processes.together(scored)
        return Done(INCOMPLETE if answered.failures else done.code, done.report, done.result)

    def _ask(self, task: Task, data: TaskData, answers: str | None) -> tuple[Plan, Asker, Path, Answered]:
        args = self._args
        shard = None if args.shard is None else Shard.read(args.shard)
        plan = make_plan(task, data, limit=args.limit, shard=shard)
        asker = self._opener.open(task)
        path = place_of_answers(plan, asker.model_id, answers)
        answered = answer_plan(
            plan, asker, path, start_over=args.start_over, processes=self._processes, quiet=args.quiet
        )
        return plan, asker, path, answered

    def _say(self, text: str) -> None:
        if self._processes.is_first:
            print(text)


def score_file(
    task: Task,
    data: TaskData,
    answers: Path,
    output: str | None,
    *,
    run: Result | None = None,
    part: str = "",
) -> Done:
    """Score an answers file, tell the scores, and write the result beside it.

    part: says that only some questions were asked; then the others are not missed. Raises UserError for
    answers to another task, and before a result that is there is replaced.
    """
    check_places(task, data, answers=answers, output=output, scores=True)
    check_task(task, answers)
    found = read_answers(answers)
    report, said = score(task, data, found, part=part)
    result = said | (run or {})
    path = result_path(answers, output)
    judged = not report.judge and judge_before(path)
    if not judged:
        write_result(path, result)
        write_text(graded_path(path), "".join(f"{graded_line(one)}\n" for one in report.graded))
    for line in [*scores_text(task.title, report.scores), *counts_text(report, len(found.broken), part)]:
        print(line)
    for one in report.written:
        print(f"written for {'the benchmark' if one == data.submission else 'a judge'}: {one}")
    told = f"{path} stays as it is: {judged} judged it, and now nobody did" if judged else path
    print(f"result: {told}")
    incomplete = (
        (report.answered < report.asked and not part) or found.broken or report.unexpected or report.failed
    )
    return Done(INCOMPLETE if incomplete else DONE, report, result)


def counts_text(report: Report, n_broken: int, part: str = "") -> list[str]:
    """Return what a reader has to know beside the scores."""
    lines = [f"{report.answered:,} of {report.asked:,} questions have an answer"]
    parts = {
        "could not be parsed": report.unparsable,
        "failed": report.failed,
        "answers to no question of this task": len(report.unexpected),
        "broken lines": n_broken,
    }
    lines += [f"{count:,} {what}" for what, count in parts.items() if count]
    named = {
        "without an answer": () if part else report.missing,
        "answered, and not asked": report.unexpected,
        "answered more than once": report.repeated,
        "empty answers": report.empty,
    }
    lines += [f"{what}: {some_of(ids)}" for what, ids in named.items() if ids]
    return lines + [f"note: {one}" for one in (*report.notes, part) if one]


def compare_files(first: Path, second: Path, output: str | None, html: str | None) -> int:
    """Compare two results, tell the difference, and write what was asked for."""
    refuse_overwriting(
        {
            f"{what} of {one.name}": place(one)
            for one in (first, second)
            for what, place in (("the answers", Path), ("the result", result_of), ("the grades", _grades_of))
        },
        {"--output": _path(output), "--html": _path(html)},
    )
    found = compare(first, second)
    for line in comparison_text(found):
        print(line)
    if output is not None:
        write_result(Path(output), comparison_result(found))
        print(f"result: {output}")
    if html is not None:
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        write_text(html, page_of(found))
        print(f"the {len(found.flips):,} questions that flipped: {html}")
    return DONE


def _grades_of(result: Path) -> Path:
    return graded_path(result_of(result))


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)
