"""Rewrites a checkpoint in today's files: `python -m llava.model.consolidate --src ... --dst ...`."""

from __future__ import annotations

import logging

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import run_program


def consolidate_ckpt(src_path: str, dst_path: str) -> None:
    """Load `src_path` and write it to `dst_path`, which may be the same, in float16 safetensors, with its
    tokenizer."""
    from llava.model.tools import deltas  # loads torch and transformers

    deltas.rewrite(src_path, dst_path)


def main() -> None:
    """Parse the command line and consolidate."""
    parser = ProgramParser(description="Rewrite a checkpoint in today's files.")
    parser.add_argument("--src", type=local_path, required=True, help="folder or hub name to read")
    parser.add_argument("--dst", type=output_path, required=True, help="folder to write")
    args = parser.parse_args()
    consolidate_ckpt(args.src, args.dst)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(main)
