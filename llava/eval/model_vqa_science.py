"""Answer ScienceQA's dialogs: `python -m llava.eval.model_vqa_science`, with the reference's flags."""

from __future__ import annotations

import sys

from llava.eval.run.doors import door_parser, get_chunk, split_list
from llava.utils import accept_any_text, lazy_names, run_program

__all__ = ["get_chunk", "main", "split_list"]


__getattr__ = lazy_names(__name__, {"eval_model": "llava.eval.doors.vqa_science"})


def main() -> None:
    """Run the program."""
    accept_any_text()
    parser = door_parser("model_vqa_science", "Answer ScienceQA's dialogs.", conv_mode="llava_v0")
    parser.set_defaults(question_file="tables/question.json")
    parser.add_argument(
        "--answer-prompter", action="store_true", help="accepted; it has no effect in the reference"
    )
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    args = parser.parse_args()
    from llava.eval.doors.vqa_science import eval_model  # loads torch

    sys.exit(eval_model(args))


if __name__ == "__main__":
    run_program(main)
