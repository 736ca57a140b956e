"""Answer ScienceQA's dialogs: `python -m llava.eval.model_vqa_science`, with the reference's flags."""

from __future__ import annotations

import argparse
import sys

from llava.eval.run.doors import check_chunk, door_parser, get_chunk, split_list
from llava.utils import accept_any_text, run_program

__all__ = ["eval_model", "get_chunk", "main", "split_list"]


def eval_model(args: argparse.Namespace) -> int:
    """Answer what the flags of the program name; returns the exit code, 1 where a question has no answer."""
    check_chunk(args)
    if args.answer_prompter:
        print("--answer-prompter has no effect, as in the reference", file=sys.stderr)
    from llava.eval.run.asking_files import ScienceDialogs, answer_file  # loads torch

    options = {"letter": "en" if args.single_pred_prompt else "none"}
    return answer_file(args, max_new_tokens=1024, task=ScienceDialogs(), options=options)


def main() -> None:
    """Run the program."""
    accept_any_text()
    parser = door_parser("model_vqa_science", "Answer ScienceQA's dialogs.", conv_mode="llava_v0")
    parser.set_defaults(question_file="tables/question.json")
    parser.add_argument(
        "--answer-prompter", action="store_true", help="accepted; it has no effect in the reference"
    )
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    sys.exit(eval_model(parser.parse_args()))


if __name__ == "__main__":
    run_program(main)
