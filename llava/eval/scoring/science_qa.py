"""ScienceQA as the reference's three programs score it: alone, with GPT-4, and asked once more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.arguments import ProgramParser, local_path, refuse_overwriting
from llava.atomic import write_text
from llava.eval.metrics.letters import FAILED, choice_index, read_letter, told_letter
from llava.eval.tasks.base import JsonValue, Record
from llava.eval.tasks.choice.science_problems import read_problems
from llava.eval.tasks.files import ID, TEXT, read_lines, read_object, read_text
from llava.eval.tasks.grading import some_of
from llava.utils import UserError

OPTIONS = list("ABCDE")


def add_flags(parser: ProgramParser) -> None:
    """Add the flags that all three programs have."""
    parser.add_argument(
        "--base-dir", type=local_path, required=True, help="folder of problems.json and pid_splits.json"
    )
    parser.add_argument("--split", default="test", help="the split that was asked (default: test)")
    parser.add_argument("--options", type=list, default=OPTIONS, help="letters of options (default: ABCDE)")


def keep_problems(args: argparse.Namespace, *written: str) -> None:
    """Raise UserError where a result would be written over the problems. written: names of arguments."""
    refuse_overwriting(
        {
            f"{name} of --base-dir": Path(args.base_dir) / name
            for name in ("problems.json", "pid_splits.json")
        },
        {f"--{name.replace('_', '-')}": Path(getattr(args, name)) for name in written},
    )


def read_ours(path: str) -> dict[str, Record]:
    """Return the records of an answers file by id; the last one of an id counts."""
    rows = read_lines(Path(path), {"question_id": ID, "text": TEXT, "prompt": TEXT})
    if not rows:
        raise UserError(f"{path} holds no answer; expected the answers to ScienceQA")
    return {str(row["question_id"]): row for row in rows}


def read_outputs(path: str) -> dict[str, str]:
    """Return the answers of a result file (its `outputs`) by id."""
    outputs = read_object(Path(path), {"outputs": dict})["outputs"]
    assert isinstance(outputs, Mapping)
    return {str(key): str(text) for key, text in outputs.items()}


def read_requery(path: str) -> dict[str, str]:
    """Return what GPT-4 said to its second question, by id: of JSON lines, as the reference has them.

    A result file with `outputs` is read as well.
    """
    try:
        whole = json.loads(read_text(Path(path)))
    except ValueError:
        whole = None
    if isinstance(whole, dict) and "outputs" in whole:
        return read_outputs(path)
    rows = read_lines(Path(path), {"question_id": ID, "text": TEXT})
    return {str(row["question_id"]): str(row["text"]) for row in rows}


def score(base_dir: str, split: str, options: Sequence[str], result_file: str) -> tuple[Record, Record]:
    """Return what was right and wrong, and the result file of the reference; a missing answer is FAILED."""
    problems, ours = read_problems(Path(base_dir), split), read_ours(result_file)
    if not set(problems) & set(ours):
        raise UserError(
            f"{result_file}: none of its {len(ours)} answers is to a problem of the split {split}"
        )
    right: list[Record] = []
    wrong: list[Record] = []
    results: dict[str, JsonValue] = {}
    outputs: dict[str, JsonValue] = {}
    for key, problem in problems.items():
        told = ours.get(key, {"text": FAILED, "prompt": "Unknown"})
        text, prompt, truth = str(told["text"]), str(told["prompt"]), _truth(problem)
        letter = read_letter(text, options)
        place = choice_index(letter, _choices(problem), options)
        detail: Record = {
            "question_id": key,
            "parsed_ans": letter,
            "ground_truth": options[truth] if truth < len(options) else str(truth),
            "question": prompt,
            "pred": text,
            "is_multimodal": "<image>" in prompt,
        }
        results[key], outputs[key] = place, text
        (right if place == truth else wrong).append(detail)
    count = len(right) + len(wrong)
    whole: Record = {"acc": len(right) / count * 100, "correct": len(right), "count": count}
    return {"correct": right, "incorrect": wrong}, whole | {"results": results, "outputs": outputs}


def summary(details: Record) -> str:
    """Return the line that the reference prints; without an image it says so."""
    right, wrong = details["correct"], details["incorrect"]
    assert isinstance(right, list) and isinstance(wrong, list)
    total = len(right) + len(wrong)
    shown = [one for one in right if one["is_multimodal"]]
    all_shown = len(shown) + sum(one["is_multimodal"] for one in wrong)
    image = f"{len(shown) / all_shown * 100:.2f}%" if all_shown else "no question has an image"
    return (
        f"Total: {total}, Correct: {len(right)}, Accuracy: {len(right) / total * 100:.2f}%, "
        f"IMG-Accuracy: {image}"
    )


def write_result(path: str, value: Record) -> None:
    """Write a result as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2))


# ---- with GPT-4 ----


def ensemble(
    base_dir: str,
    split: str,
    options: Sequence[str],
    files: tuple[str, str, str | None],
) -> tuple[dict[str, int], Record]:
    """Count over the problems that both have answered; files: of GPT-4, ours, of the requery.

    gpt4_ours: GPT-4's answer, and ours where it gave none. requery: what GPT-4 said when it was shown both
    answers, and ours where it named no letter or was not asked. upper: one of the two is right. An answer
    without a letter is wrong; the reference draws lots. Problems that one of them has not answered are named
    on standard error. Returns counts, and the final result file.
    """
    problems, gpt4, ours = read_problems(Path(base_dir), split), read_outputs(files[0]), read_ours(files[1])
    again = {} if files[2] is None else read_requery(files[2])
    if lost := [key for key in problems if key not in ours or key not in gpt4]:
        told = f"{len(lost)} of {len(problems)} problems are not answered in both {files[0]} and {files[1]}"
        print(f"{told}, and count nowhere: {some_of(lost)}", file=sys.stderr)
    names = ("total", "ours", "gpt4", "gpt4_ours", "upper", "gpt4_failed", "requeried", "requery")
    counts = dict.fromkeys(names, 0)
    results: dict[str, JsonValue] = {}
    outputs: dict[str, JsonValue] = {}
    for key, problem in problems.items():
        if key not in ours or key not in gpt4:
            continue
        choices, truth = _choices(problem), _truth(problem)
        own = choice_index(told_letter(str(ours[key]["text"])), choices, options)
        letter = told_letter(gpt4[key])
        theirs = choice_index(letter, choices, options)
        both = own if letter == FAILED else theirs
        final, said = own, str(ours[key]["text"])
        if (decided := told_letter(again.get(key, ""))) != FAILED:
            counts["requeried"] += 1
            final, said = choice_index(decided, choices, options), again[key]
        counts["total"] += 1
        counts["gpt4_failed"] += letter == FAILED
        for name, hit in (
            ("ours", own == truth), ("gpt4", theirs == truth), ("gpt4_ours", both == truth),
            ("upper", truth in (own, both)), ("requery", final == truth),
        ):  # fmt: skip
            counts[name] += hit
        results[key], outputs[key] = final, said
    if not counts["total"]:
        raise UserError(f"no problem of the split {split} is answered in both {files[0]} and {files[1]}")
    share = counts["requery"] / counts["total"] * 100
    whole: Record = {"acc": share, "correct": counts["requery"], "count": counts["total"]}
    return counts, whole | {"results": results, "outputs": outputs}


def share_line(counts: Mapping[str, int], name: str, called: str, share: str = "Accuracy") -> str:
    """Return a line with a count and its share of the total."""
    total = counts["total"]
    return f"Total: {total}, {called}: {counts[name]}, {share}: {counts[name] / total * 100:.2f}%"


def _choices(problem: Record) -> Sequence[object]:
    assert isinstance(problem["choices"], list)
    return problem["choices"]


def _truth(problem: Record) -> int:
    assert isinstance(problem["answer"], int)
    return problem["answer"]
