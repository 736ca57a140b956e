"""Answers to the rows of MMBench's table."""

from __future__ import annotations

import argparse

from llava.eval.run.asking_files import MMBenchRows, answer_file
from llava.eval.run.doors import check_chunk


def eval_model(args: argparse.Namespace) -> int:
    """Answer what the flags of the program name; returns the exit code, 1 where a question has no answer."""
    check_chunk(args)
    options = {
        "all-rounds": "yes" if args.all_rounds else "no",
        "letter": args.lang if args.single_pred_prompt else "none",
    }
    return answer_file(args, max_new_tokens=1024, task=MMBenchRows(), options=options)
