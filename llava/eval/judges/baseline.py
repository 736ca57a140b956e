"""Answers of a model behind a server to text questions, in the reference's format (Vicuna-80)."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llava.eval.judges.client import Judge, JudgeFailed, Message, Reply
from llava.eval.judges.settings import judge_options, settings_of
from llava.eval.run.asking import answer_id
from llava.eval.tasks.base import JsonValue, Record
from llava.eval.tasks.files import ID, TEXT, read_lines
from llava.lines import LineFile
from llava.utils import UserError, shortened

SYSTEM = "You are a helpful assistant."


def get_answer(
    question_id: int | str,
    question: str,
    max_tokens: int,
    *,
    judge_model: str = "",
    judge_base_url: str | None = None,
) -> Record:
    """Return a model's answer as a record. Raises UserError, also where no model is named."""
    options = {"judge-model": judge_model}
    if judge_base_url is not None:
        options["judge-base-url"] = judge_base_url
    judge = Judge(settings_of(options, max_tokens=max_tokens))
    try:
        return _record(question_id, judge.ask(_messages(question)))
    except JudgeFailed as failed:
        raise UserError(f"question {question_id} has no answer: {failed}") from failed


def answer_all(args: argparse.Namespace) -> None:
    """Answer the questions of a file; those that the output holds stay. Raises UserError for what failed."""
    judge = Judge(settings_of(judge_options(args), max_tokens=args.max_tokens))
    output = Path(args.output)
    questions = {
        one["question_id"]: one["text"]
        for one in read_lines(Path(args.question), {"question_id": ID, "text": TEXT})
    }
    answers: dict[JsonValue, Record] = {}
    if output.exists():
        LineFile(output).mend()
        answers = {one["question_id"]: one for one in read_lines(output, {"question_id": ID, "text": TEXT})}
    left = [key for key in questions if key not in answers]
    failed: dict[JsonValue, str] = {}

    def ask(key: JsonValue) -> tuple[JsonValue, Reply | JudgeFailed]:
        try:
            return key, judge.ask(_messages(str(questions[key])))
        except JudgeFailed as error:
            return key, error

    with LineFile(output) as file, ThreadPoolExecutor(judge.settings.parallel) as pool:
        try:
            for key, found in pool.map(ask, left):
                if isinstance(found, JudgeFailed):
                    failed[key] = str(found)
                    continue
                answers[key] = _record(key, found)
                file.append([json.dumps(answers[key])])
        finally:
            judge.stopped.set()
            pool.shutdown(cancel_futures=True)
        file.rewrite(lambda: [json.dumps(answers[key]) for key in questions if key in answers])
    print(f"{len(answers)} answers in {output}")
    if failed:
        first, why = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(questions)} questions have no answer, the first is "
            f"{shortened(first, 60)}: "
            f"{why}; run again to ask these only"
        )


def _messages(question: str) -> tuple[Message, ...]:
    return ({"role": "system", "content": SYSTEM}, {"role": "user", "content": question})


def _record(question_id: JsonValue, reply: Reply) -> Record:
    assert isinstance(question_id, int | str)
    return {
        "answer_id": answer_id(),
        "question_id": question_id,
        "model_id": reply.model,
        "text": reply.text,
    }
