"""Short answers to the questions of a file."""

from __future__ import annotations

import argparse

from llava.eval.run.asking_files import answer_file
from llava.eval.run.doors import check_chunk
from llava.mm_utils import get_model_name_from_path


def eval_model(args: argparse.Namespace) -> int:
    """Answer what the flags of the program name; returns the exit code, 1 where a question has no answer."""
    check_chunk(args)
    conv_mode = args.conv_mode
    name = get_model_name_from_path(args.model_path).lower()
    if "plain" in name and "finetune" not in name and "mmtag" not in conv_mode:
        conv_mode += "_mmtag"
        print(f"{args.model_path} seems to be a plain model; its template is {conv_mode}")
    return answer_file(args, max_new_tokens=args.max_new_tokens, conv_mode=conv_mode)
