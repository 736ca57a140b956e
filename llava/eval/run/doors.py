"""What the answering programs of the reference share: their flags, and which questions each asks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TypeVar

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import UserError

Item = TypeVar("Item")


def split_list(lst: Sequence[Item], n: int) -> list[Sequence[Item]]:
    """Return at most n parts of a list, all of ceil(len / n) items but the last."""
    size = max(1, math.ceil(len(lst) / n))
    return [lst[start : start + size] for start in range(0, len(lst), size)]


def get_chunk(lst: Sequence[Item], n: int, k: int) -> Sequence[Item]:
    """Return the k-th of n parts, from 0; empty where the list has fewer. Raises UserError for another k."""
    if n < 1 or not 0 <= k < n:
        raise UserError(
            f"--chunk-idx is {k} of --num-chunks {n}; expected an index from 0 to {max(n - 1, 0)}"
        )
    parts = split_list(lst, n)
    return parts[k] if k < len(parts) else []


def door_parser(program: str, what: str, *, conv_mode: str = "llava_v1") -> ProgramParser:
    """Build the flags that the answering programs of the reference have, with its defaults."""
    parser = ProgramParser(prog=f"python -m llava.eval.{program}", description=what)
    parser.add_argument(
        "--model-path",
        type=local_path,
        default="facebook/opt-350m",
        help="folder or hub name of a checkpoint",
    )
    parser.add_argument(
        "--model-base", type=local_path, default=None, help="base of a LoRA or projector-only checkpoint"
    )
    parser.add_argument("--image-folder", type=local_path, default="", help="folder of the images")
    parser.add_argument("--question-file", type=local_path, default="tables/question.jsonl", help="questions")
    parser.add_argument(
        "--answers-file", type=output_path, default="answer.jsonl", help="answers, resumed if it is there"
    )
    parser.add_argument("--conv-mode", default=conv_mode, help=f"prompt template (default: {conv_mode})")
    parser.add_argument("--num-chunks", type=int, default=1, help="parts of the questions (default: 1)")
    parser.add_argument("--chunk-idx", type=int, default=0, help="the part that is asked (default: 0)")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (default: 0.2)")
    parser.add_argument("--top_p", type=float, default=None, help="share of likeliest tokens kept")
    parser.add_argument("--num_beams", type=int, default=1, help="beams (default: 1, none)")
    return parser


def check_chunk(args: argparse.Namespace) -> None:
    """Raise UserError for a chunk that there cannot be."""
    get_chunk([], args.num_chunks, args.chunk_idx)
