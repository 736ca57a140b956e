"""Answer the questions of a file, short answers: `python -m llava.eval.model_vqa_loader`."""

from __future__ import annotations

import sys

from llava.eval.run.doors import check_chunk, door_parser, get_chunk, split_list
from llava.mm_utils import get_model_name_from_path
from llava.utils import accept_any_text, run_program

__all__ = ["get_chunk", "main", "split_list"]


def main() -> None:
    """Run the program."""
    accept_any_text()
    parser = door_parser("model_vqa_loader", "Answer the questions of a file.")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer (default: 128)")
    args = parser.parse_args()
    check_chunk(args)
    conv_mode = args.conv_mode
    name = get_model_name_from_path(args.model_path).lower()
    if "plain" in name and "finetune" not in name and "mmtag" not in conv_mode:
        conv_mode += "_mmtag"
        print(f"{args.model_path} seems to be a plain model; its template is {conv_mode}")
    from llava.eval.run.asking_files import answer_file  # loads torch

    sys.exit(answer_file(args, max_new_tokens=args.max_new_tokens, conv_mode=conv_mode))


if __name__ == "__main__":
    run_program(main)
