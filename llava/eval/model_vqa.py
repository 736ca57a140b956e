"""Answer the questions of a file: `python -m llava.eval.model_vqa`, with the reference's flags."""

from __future__ import annotations

import sys

from llava.eval.run.doors import door_parser, get_chunk, split_list
from llava.utils import accept_any_text, lazy_names, run_program

__all__ = ["get_chunk", "main", "split_list"]


__getattr__ = lazy_names(__name__, {"eval_model": "llava.eval.doors.vqa"})


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = door_parser("model_vqa", "Answer the questions of a file.").parse_args()
    from llava.eval.doors.vqa import eval_model  # loads torch

    sys.exit(eval_model(args))


if __name__ == "__main__":
    run_program(main)
