"""The flags of `python -m llava.eval`: of the model, of the data of a task, and of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llava.arguments import local_path, output_path, plain_text
from llava.eval.tasks.base import Task, TaskData
from llava.utils import UserError

DATA_DIR = Path("playground/data/eval")
BATCH_SIZE = 8
RETRIES = 5
TIMEOUT_S = 300.0
DONE, INCOMPLETE = 0, 1  # exit codes; 2 is a UserError


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model is asked, here or behind a server, and how."""
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model-path", type=local_path, default=None, help="folder or hub name of a checkpoint"
    )
    model.add_argument(
        "--model-base", type=local_path, default=None, help="base of a LoRA or projector-only checkpoint"
    )
    model.add_argument("--conv-mode", default=None, help="prompt template (default: that of the checkpoint)")
    model.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:N or mps (default: the best one present)"
    )
    model.add_argument(
        "--dtype", default=None, help="float32, bfloat16 or float16 (default: one that is fast on the device)"
    )
    model.add_argument("--load-8bit", action="store_true", help="load in 8 bits (bitsandbytes)")
    model.add_argument("--load-4bit", action="store_true", help="load in 4 bits (bitsandbytes)")
    model.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help=f"questions at a time (default: {BATCH_SIZE})"
    )
    server = parser.add_argument_group("or a server with OpenAI's interface")
    server.add_argument("--base-url", default=None, help="its address, such as http://localhost:8000/v1")
    server.add_argument("--api-key", default=None, help="its key (default: the variable OPENAI_API_KEY)")
    server.add_argument("--model", default=None, help="name of its model (default: the first that it lists)")
    server.add_argument("--concurrency", type=int, default=BATCH_SIZE, help="requests at a time (default: 8)")
    server.add_argument(
        "--retries",
        type=int,
        default=RETRIES,
        help="tries after a failed one, with growing pauses (default: 5)",
    )
    server.add_argument(
        "--request-timeout", type=float, default=TIMEOUT_S, help="seconds for an answer (default: 300)"
    )


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how answers are made, and which questions are asked."""
    answer = parser.add_argument_group("the answers")
    answer.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the task's)")
    answer.add_argument("--top_p", "--top-p", type=float, default=None, help="share of likeliest tokens kept")
    answer.add_argument("--num_beams", "--num-beams", type=int, default=1, help="beams (default: 1, none)")
    answer.add_argument(
        "--max_new_tokens",
        "--max-new-tokens",
        type=int,
        default=None,
        help="longest answer (default: the task's)",
    )
    answer.add_argument("--seed", type=int, default=None, help="makes random answers repeatable")
    answer.add_argument("--limit", type=int, default=None, help="ask the first so many questions only")
    answer.add_argument("--shard", default=None, help="i/n: ask every n-th question from the i-th on only")
    answer.add_argument(
        "--start-over", action="store_true", help="drop the answers that the file has, and ask everything"
    )
    answer.add_argument("--quiet", action="store_true", help="show no progress")


def add_data_flags(parser: argparse.ArgumentParser, tasks: Sequence[Task]) -> None:
    """Add the flags that say where the files of tasks are, and how they are read."""
    data = parser.add_argument_group("the data")
    data.add_argument(
        "--data-dir",
        type=local_path,
        default=None,
        help=f"folder of the task's data (default: {DATA_DIR}/ and the task's name)",
    )
    known: set[str] = set()
    for task in tasks:
        if task.splits and "split" not in known:
            known.add("split")
            data.add_argument("--split", default=None, help=f"{', '.join(task.splits)} (default: the first)")
        for one in task.data:
            if one.key not in known:
                known.add(one.key)
                usual = "" if one.where == "." else f" (default: {one.where} there)"
                text = f"{one.what}{usual}".replace("%", "%%")
                data.add_argument(f"--{one.key}", type=local_path, default=None, help=text)
        for option in task.options:
            if option.key not in known:
                known.add(option.key)
                text = option.what.replace("%", "%%")
                text += f" (default: {option.default})" if option.default is not None else ""
                choices = list(option.choices) or None
                kind = local_path if option.is_path else plain_text
                data.add_argument(
                    f"--{option.key}", type=kind, default=option.default, choices=choices, help=text
                )


def read_data(task: Task, args: argparse.Namespace, *, submission: str | None = None) -> TaskData:
    """Return where the data of a task is, from flags of `add_data_flags`."""
    given = vars(args)
    root = Path(args.data_dir) if args.data_dir else DATA_DIR / (task.folder or task.name)
    named = {one.key: given[_field(one.key)] for one in task.data}
    options = {one.key: given[_field(one.key)] for one in task.options}
    return TaskData(
        root,
        files={key: Path(value) for key, value in named.items() if value is not None},
        split=given.get("split"),
        options={key: value for key, value in options.items() if value is not None},
        submission=None if submission is None else Path(submission),
    )


def answers_path(task: Task, data: TaskData, model_id: str, given: str | None) -> Path:
    """Return the answers file: the named one, or the task's place, as a rule in the folder of the data."""
    if given is not None:
        return Path(given)
    return _below(task.kept_in(data, "answers"), task, data, model_id)


def earlier_answers_path(task: Task, data: TaskData, model_id: str) -> Path:
    """Return where earlier versions put the answers that no flag names a file for."""
    return _below(data.root / "answers", task, data, model_id)


def _below(folder: Path, task: Task, data: TaskData, model_id: str) -> Path:
    """Return the file of a model's answers in a folder: that of the split and the settings."""
    scoring = {one.key for one in task.options if one.scoring}
    settings = sorted(value for key, value in data.options.items() if key not in scoring)
    parts = [one for one in (data.split_of(task), *settings) if one]
    return folder.joinpath(*(_safe(one) for one in parts), f"{_safe(model_id)}.jsonl")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where a result goes."""
    parser.add_argument(
        "--output", type=output_path, default=None, help="result as JSON (default: beside the answers)"
    )
    parser.add_argument(
        "--submission",
        type=output_path,
        default=None,
        help="file for the benchmark's server, where one lives",
    )


def check_one_model(args: argparse.Namespace) -> None:
    """Raise UserError unless the flags name one model, and fit the way it is asked."""
    if (args.model_path is None) == (args.base_url is None):
        found = "neither" if args.model_path is None else "both"
        raise UserError(
            f"{found} of --model-path and --base-url was given; name a checkpoint with --model-path, or the "
            "address of a running server with --base-url"
        )

    if args.base_url is None:
        _refuse_server_flags(args)
        return
    here = {
        "--batch-size": args.batch_size != BATCH_SIZE,
        "--model-base": args.model_base is not None,
        "--conv-mode": args.conv_mode is not None,
        "--device": args.device is not None,
        "--dtype": args.dtype is not None,
        "--load-8bit": args.load_8bit,
        "--load-4bit": args.load_4bit,
        "--num_beams": args.num_beams != 1,
    }
    if useless := [flag for flag, is_given in here.items() if is_given]:
        raise UserError(
            f"{', '.join(useless)} cannot be kept with --base-url: the server has loaded its model, and its "
            "interface has no such setting; omit it, or ask the checkpoint itself with --model-path"
        )


def _refuse_server_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags of a server where a checkpoint is asked."""
    there = {
        "--api-key": args.api_key is not None,
        "--model": args.model is not None,
        "--concurrency": args.concurrency != BATCH_SIZE,
        "--retries": args.retries != RETRIES,
        "--request-timeout": args.request_timeout != TIMEOUT_S,
    }
    if useless := [flag for flag, is_given in there.items() if is_given]:
        verb = "is" if len(useless) == 1 else "are"
        raise UserError(
            f"{', '.join(useless)} {verb} for a server, which --base-url names; a checkpoint of --model-path "
            "has no such setting (--batch-size says how many questions it is asked at a time)"
        )


def _field(key: str) -> str:
    return key.replace("-", "_")


def _safe(name: str) -> str:
    """Return a text as the name of a file."""
    return "".join(one if one.isalnum() or one in "-_." else "_" for one in name).lstrip(".") or "model"
