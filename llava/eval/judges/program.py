"""The program behind eval_gpt_review, eval_gpt_review_bench and eval_gpt_review_visual."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from llava.eval.judges.client import Judge, JudgeFailed
from llava.eval.judges.judging import Item, Outcome, judge_all
from llava.eval.judges.pairs import (
    BENCH_STYLE,
    TEXT_STYLE,
    VISUAL_STYLE,
    by_question,
    pair_items,
    read_context,
    read_questions,
)
from llava.eval.judges.replies import PAIR
from llava.eval.judges.settings import judge_options, settings_of
from llava.eval.judges.wording import messages, read_rules
from llava.eval.tasks.base import Record
from llava.eval.tasks.files import read_lines
from llava.utils import UserError, shortened

STYLES = {"text": TEXT_STYLE, "bench": BENCH_STYLE, "visual": VISUAL_STYLE}


def review(args: argparse.Namespace, kind: str) -> None:
    """Judge pairs of answers; args: those of `llava.eval.judges.flags.review_parser`. Raises UserError."""
    settings = settings_of(judge_options(args), max_tokens=args.max_tokens)
    items = _items(args, kind)
    outcome = judge_all(items, settings, Path(args.output), scale=PAIR, dry_run=args.judge_dry_run)
    if args.judge_dry_run:
        return
    print(summary(outcome, args.output))
    if complaint := outcome.complaint():
        raise UserError(complaint)


def summary(outcome: Outcome, output: str | Path) -> str:
    """Say in one line what was judged, and by whom."""
    told = [f"{len(outcome.lines)} judgements in {output}", f"judged by {', '.join(outcome.models)}"]
    counts = {"were there before": outcome.kept, "from the cache": outcome.cached, "retries": outcome.retries}
    told += [f"{count} {name}" for name, count in counts.items() if count]
    return ", ".join(told)


def _items(args: argparse.Namespace, kind: str) -> list[Item]:
    """Read all files of the command line."""
    style = STYLES[kind]
    if len(args.answer_list) != 2:
        raise UserError(
            f"--answer-list names {len(args.answer_list)} files; expected two: the answers to measure by, "
            "and "
            "those of the model"
        )
    questions = read_questions(Path(args.question), style)
    first, second = (by_question(read_lines(Path(one), {}), one) for one in args.answer_list)
    for name, side in zip(args.answer_list, (first, second), strict=True):
        _check_answers(name, questions, side)
    context = None if style.context is None else read_context(Path(args.context), style)
    rules = read_rules(Path(args.rule) if args.rule else None)
    return pair_items(questions, (first, second), rules, style=style, context=context)


def _check_answers(name: str, questions: list[Record], answers: Mapping[str | int, Record]) -> None:
    """Raise UserError for answers of another question set, and for questions without an answer."""
    asked = [one["question_id"] for one in questions]
    missing = [str(one) for one in asked if one not in answers]
    unexpected = [str(one) for one in answers if one not in set(asked)]
    for ids, told in ((missing, "lacks answers to"), (unexpected, "answers questions that are not asked:")):
        if ids:
            some = shortened(", ".join(ids[:5]), 120) + (", ..." if len(ids) > 5 else "")
            raise UserError(
                f"{name} {told} {some} ({len(ids)} of {len(asked)} questions); the files are not of one "
                "question set"
            )


def get_eval(
    content: str, max_tokens: int, *, judge_model: str = "", judge_base_url: str | None = None
) -> str:
    """Return a judge's reply to one prompt. Raises UserError, also where no model is named."""
    options = {"judge-model": judge_model}
    if judge_base_url is not None:
        options["judge-base-url"] = judge_base_url
    judge = Judge(settings_of(options, max_tokens=max_tokens))
    try:
        return judge.ask(messages(content)).text
    except JudgeFailed as failed:
        raise UserError(f"the judge gave no reply: {failed}") from failed
