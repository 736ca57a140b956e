"""Answers to the questions of a file."""

from __future__ import annotations

import argparse

from llava.eval.run.asking_files import answer_file
from llava.eval.run.doors import check_chunk


def eval_model(args: argparse.Namespace) -> int:
    """Answer what the flags of the program name; returns the exit code, 1 where a question has no answer."""
    check_chunk(args)
    return answer_file(args, max_new_tokens=1024)
