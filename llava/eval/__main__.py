"""`python -m llava.eval`: ask a model the questions of a benchmark, score its answers, compare two models."""

from __future__ import annotations

import sys

from llava.eval.run.command import main
from llava.utils import accept_any_text, run_program


def _run() -> None:
    accept_any_text()
    main(sys.argv[1:])


if __name__ == "__main__":
    run_program(_run)
