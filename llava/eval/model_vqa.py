"""Answer the questions of a file: `python -m llava.eval.model_vqa`, with the reference's flags."""

from __future__ import annotations

import argparse
import sys

from llava.eval.run.doors import check_chunk, door_parser, get_chunk, split_list
from llava.utils import accept_any_text, run_program

__all__ = ["eval_model", "get_chunk", "main", "split_list"]


def eval_model(args: argparse.Namespace) -> int:
    """Answer what the flags of the program name; returns the exit code, 1 where a question has no answer."""
    check_chunk(args)
    from llava.eval.run.asking_files import answer_file  # loads torch

    return answer_file(args, max_new_tokens=1024)


def main() -> None:
    """Run the program."""
    accept_any_text()
    sys.exit(eval_model(door_parser("model_vqa", "Answer the questions of a file.").parse_args()))


if __name__ == "__main__":
    run_program(main)
