"""Answer the rows of MMBench's table: `python -m llava.eval.model_vqa_mmbench`, the reference's flags."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from llava.eval.run.doors import door_parser, get_chunk, split_list
from llava.utils import accept_any_text, lazy_names, run_program

__all__ = ["all_options", "get_chunk", "get_options", "is_none", "main", "split_list"]

all_options = ["A", "B", "C", "D"]


def is_none(value: object) -> bool:
    """Tell whether a cell of the table counts as missing: None, a float that is no number, "nan", "none"."""
    if isinstance(value, str):
        return value.lower() in ("nan", "none")
    return value is None or (isinstance(value, float) and value != value)


def get_options(row: Mapping[str, object], options: Sequence[str]) -> list[object]:
    """Return the cells of a row that `options` name, up to the first missing one."""
    found: list[object] = []
    for name in options:
        if is_none(row[name]):
            break
        found.append(row[name])
    return found


__getattr__ = lazy_names(__name__, {"eval_model": "llava.eval.doors.vqa_mmbench"})


def main() -> None:
    """Run the program."""
    accept_any_text()
    parser = door_parser("model_vqa_mmbench", "Answer the rows of MMBench's table.")
    parser.add_argument(
        "--all-rounds", action="store_true", help="ask each row with all rotations of its options"
    )
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    parser.add_argument(
        "--lang", choices=("en", "cn"), default="en", help="language of that line (default: en)"
    )
    args = parser.parse_args()
    from llava.eval.doors.vqa_mmbench import eval_model  # loads torch

    sys.exit(eval_model(args))


if __name__ == "__main__":
    run_program(main)
