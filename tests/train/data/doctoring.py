"""Runs of `python -m llava.train.check_data` in this process."""

from __future__ import annotations

from llava.train import check_data


def doctor(*arguments: object) -> int:
    """Run the program; returns its exit code."""
    try:
        check_data.main([str(one) for one in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0
