"""Answer the questions of a file: `python -m llava.eval.model_vqa`, with the reference's flags."""

from __future__ import annotations

import sys

from llava.eval.run.doors import check_chunk, door_parser, get_chunk, split_list
from llava.utils import accept_any_text, run_program

__all__ = ["get_chunk", "main", "split_list"]


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = door_parser("model_vqa", "Answer the questions of a file.").parse_args()
    check_chunk(args)
    from llava.eval.run.asking_files import answer_file  # loads torch

    sys.exit(answer_file(args, max_new_tokens=1024))


if __name__ == "__main__":
    run_program(main)
