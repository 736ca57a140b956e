"""Answers to ScienceQA's dialogs."""

from __future__ import annotations

import argparse
import sys

from llava.eval.run.asking_files import ScienceDialogs, answer_file
from llava.eval.run.doors import check_chunk


def eval_model(args: argparse.Namespace) -> int:
    """Answer what the flags of the program name; returns the exit code, 1 where a question has no answer."""
    check_chunk(args)
    if args.answer_prompter:
        print("--answer-prompter has no effect, as in the reference", file=sys.stderr)
    options = {"letter": "en" if args.single_pred_prompt else "none"}
    return answer_file(args, max_new_tokens=1024, task=ScienceDialogs(), options=options)
