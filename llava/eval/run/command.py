"""The words of `python -m llava.eval`: answer, score, a task's name for both, and list."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.arguments import ProgramParser, local_path, output_path
from llava.eval.run.flags import (
    DATA_DIR,
    DONE,
    add_answer_flags,
    add_data_flags,
    add_model_flags,
    add_output_flags,
    check_one_model,
    read_data,
)
from llava.eval.tasks.base import Task
from llava.eval.tasks.registry import task_named, task_names

PROGRAM = "python -m llava.eval"

_USAGE = f"""\
{PROGRAM} TASK --model-path FOLDER    ask and score
{PROGRAM} --suite v1.5 --model-path FOLDER    ask and score many, one table
{PROGRAM} answer TASK --model-path FOLDER    ask only
{PROGRAM} score TASK --answers FILE    score only; no model is needed
{PROGRAM} compare A B    paired difference of two results of one task
{PROGRAM} list [TASK ...]    what there is, and what is found on this disk
Each explains its flags with --help."""


def main(words: Sequence[str]) -> None:
    """Run one of the programs. Ends with exit code 1 where questions have no answer or lines are broken."""
    verb, rest = (words[0], list(words[1:])) if words else ("--help", [])
    if verb in ("-h", "--help"):
        print(_overview())
        return
    if verb.split("=")[0] in ("--suite", "--tasks"):
        verb, rest = "suite", list(words)
    programs = {"suite": _suite, "answer": _answer, "score": _score, "compare": _compare, "list": _list}
    code = programs[verb](rest) if verb in programs else _both([verb, *rest])
    if code != DONE:
        sys.exit(code)


def _overview() -> str:
    return f"usage: {_USAGE}\n\ntasks: {', '.join(task_names())}"


def parser_of(verb: str, task: Task | None) -> argparse.ArgumentParser:
    """Build the parser of answer, score or run (both) for a task; without one, of what all tasks have."""
    what = {"answer": "Ask a model the questions of", "score": "Score answers to", "run": "Ask and score"}[
        verb
    ]
    name = "TASK" if task is None else task.name
    parser = ProgramParser(
        prog=f"{PROGRAM} {name}" if verb == "run" else f"{PROGRAM} {verb} {name}",
        description=f"{what} {'a benchmark' if task is None else task.title}.",
    )
    if verb == "score":
        parser.add_argument("--answers", type=local_path, required=True, help="answers file: JSON lines")
    else:
        add_model_flags(parser)
        add_answer_flags(parser)
        parser.add_argument(
            "--answers",
            type=output_path,
            default=None,
            help="file of the answers, resumed if it is there (default: answers/MODEL.jsonl by the data)",
        )
    add_data_flags(parser, [] if task is None else [task])
    if verb != "answer":
        add_output_flags(parser)
    return parser


def _read(verb: str, words: Sequence[str]) -> tuple[Task, argparse.Namespace]:
    """Return the task that comes first, and its flags."""
    if not words or words[0].startswith("-"):
        parser = parser_of(verb, None)
        if {"-h", "--help"} & set(words):
            parser.parse_args(["--help"])
        parser.error(f"name a task first; the tasks are {', '.join(task_names())}")
    task = task_named(words[0])
    return task, parser_of(verb, task).parse_args(words[1:])


def _answer(words: Sequence[str]) -> int:
    task, args = _read("answer", words)
    check_one_model(args)
    from llava.eval.run.running import Run  # loads torch

    return Run(args).answer(task, read_data(task, args), args.answers).code


def _both(words: Sequence[str]) -> int:
    task, args = _read("run", words)
    check_one_model(args)
    from llava.eval.run.running import Run  # loads torch

    data = read_data(task, args, submission=args.submission)
    return Run(args).answer_and_score(task, data, args.answers, args.output).code


def _score(words: Sequence[str]) -> int:
    task, args = _read("score", words)
    from llava.eval.run.running import score_file  # loads torch

    data = read_data(task, args, submission=args.submission)
    return score_file(task, data, Path(args.answers), args.output).code


def suite_parser() -> argparse.ArgumentParser:
    """Build the parser of a suite."""
    parser = ProgramParser(prog=f"{PROGRAM} --suite", description="Ask and score many tasks with one model.")
    parser.add_argument("--suite", default=None, help="v1.5: the twelve benchmarks of LLaVA-1.5")
    parser.add_argument("--tasks", default=None, help="or the names of tasks, separated by commas")
    add_model_flags(parser)
    add_answer_flags(parser)
    parser.add_argument(
        "--data-dir",
        type=local_path,
        default=None,
        help=f"folder of the tasks' folders (default: {DATA_DIR})",
    )
    parser.add_argument(
        "--output", type=output_path, default="runs/eval", help="folder of the table (default: runs/eval)"
    )
    parser.add_argument(
        "--published", default=None, help="model whose published scores stand beside (default: by its name)"
    )
    return parser


def _suite(words: Sequence[str]) -> int:
    args = suite_parser().parse_args(words)
    check_one_model(args)
    from llava.eval.suites.suite import run_suite  # loads torch

    return run_suite(args)


def _compare(words: Sequence[str]) -> int:
    parser = ProgramParser(
        prog=f"{PROGRAM} compare", description="Compare two results of one task, question by question."
    )
    for name in ("first", "second"):
        parser.add_argument(
            name, type=local_path, help="result (*.result.json), or the answers file beside it"
        )
    parser.add_argument("--output", type=output_path, default=None, help="comparison as JSON")
    parser.add_argument(
        "--html",
        type=output_path,
        default=None,
        help="page with the questions that flipped, and their images",
    )
    args = parser.parse_args(words)
    from llava.eval.run.running import compare_files  # loads torch

    return compare_files(Path(args.first), Path(args.second), args.output, args.html)


def _list(words: Sequence[str]) -> int:
    parser = ProgramParser(
        prog=f"{PROGRAM} list",
        description="Tell which tasks there are, and what of their data is on this disk.",
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="only these, with where their data is from")
    add_data_flags(parser, [])
    args = parser.parse_args(words)
    from llava.eval.run.listing import list_tasks

    for line in list_tasks(args.tasks or task_names(), args.data_dir, details=bool(args.tasks)):
        print(line)
    return DONE
