r"""Shows what a checkpoint is, what it needs and what is wrong with it, without reading its weights.

python -m llava.model.inspect ./checkpoints/llava-v1.5-7b [--model-base B] [--json] [--verify]

Exit status: 0 it can be chatted with, 1 something is missing or wrong, 2 it is no checkpoint.
(This folder has no __init__.py: a module named inspect beside the others would hide Python's own from
programs that are run by their file, as `python llava/model/apply_delta.py`.)
"""

from __future__ import annotations

import sys

from llava.arguments import local_path
from llava.model.tools.usage import ExampleParser
from llava.utils import run_program

PROGRAM = "python -m llava.model.inspect"


def main() -> None:
    """Parse the command line, print the report, and leave with its exit status."""
    parser = ExampleParser(
        prog=PROGRAM,
        description="Show what a checkpoint is, needs and lacks, without reading its weights. Exit status:\n"
        "0 it can be chatted with, 1 something is missing or wrong, 2 it is no checkpoint.",
        examples=(
            f"{PROGRAM} ./checkpoints/llava-v1.5-7b",
            f"{PROGRAM} ./checkpoints/llava-lora --model-base lmsys/vicuna-7b-v1.5",
        ),
    )
    parser.add_argument(
        "checkpoint",
        type=local_path,
        metavar="CHECKPOINT",
        help="folder, or hub name that is in the cache; nothing is downloaded",
    )
    parser.add_argument(
        "--model-base", type=local_path, help="base model of a LoRA or projector-only checkpoint"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with every weight's name")
    parser.add_argument(
        "--verify", action="store_true", help="read all files and compare them with their stored checksums"
    )
    args = parser.parse_args()
    from llava.model.tools import report_text  # loads torch and transformers

    report = report_text.inspected(args.checkpoint, args.model_base, verify=args.verify)
    sys.stdout.write(report_text.written(report, as_json=args.json) + "\n")
    sys.exit(0 if report.can_chat else 1)


if __name__ == "__main__":
    run_program(main)
