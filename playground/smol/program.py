"""Runs a program of llava with the tower of this folder: python -m playground.smol.program PROGRAM FLAGS...

PROGRAM is a script (llava/train/train_mem.py) or a module (llava.serve.cli). A tower of your own needs no
more than that its file is imported before.
"""

from __future__ import annotations

import runpy
import sys

import playground.smol.tower  # noqa: F401  (registers the tower)


def main() -> None:
    """Run the program that the first argument names, with the others."""
    del sys.argv[0]
    program = sys.argv[0]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
