"""Answer the questions of a file, short answers: `python -m llava.eval.model_vqa_loader`."""

from __future__ import annotations

import sys

from llava.eval.run.doors import door_parser, get_chunk, split_list
from llava.utils import accept_any_text, lazy_names, run_program

__all__ = ["get_chunk", "main", "split_list"]


NAMES = ("CustomDataset", "collate_fn", "create_data_loader", "eval_model")
__getattr__ = lazy_names(__name__, dict.fromkeys(NAMES, "llava.eval.doors.vqa_loader"))


def main() -> None:
    """Run the program."""
    accept_any_text()
    parser = door_parser("model_vqa_loader", "Answer the questions of a file.")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer (default: 128)")
    args = parser.parse_args()
    from llava.eval.doors.vqa_loader import eval_model  # loads torch

    sys.exit(eval_model(args))


if __name__ == "__main__":
    run_program(main)
