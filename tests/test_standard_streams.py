"""Programs whose output nobody reads or cannot be written, and those without standard streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# what a program does with its streams
MAINS = {
    "many lines": "for _ in range(100_000): print('a line')",
    "one at a time": "[print('a line', flush=True) for _ in range(100_000)]",
    "a few at its end": "print('a line')",
    "an end of its own": "print('a line'); sys.exit(1)",
    "a user's mistake": "print('a line'); raise UserError('found none, expected one')",
    "notes": "[print('a note', file=sys.stderr, flush=True) for _ in range(100_000)]",
}


@pytest.fixture(autouse=True, params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start programs with and without a buffer in front of their output."""
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


def start(main: str, *, close: tuple[int, ...] = (), **streams: object) -> subprocess.Popen[str]:
    """Start a program of its own; close: the standard streams that it does not have."""
    code = "import sys\nfrom llava.utils import UserError, run_program\ndef main():\n    " + main
    words = [sys.executable, "-c", code + "\nrun_program(main)"]
    if close:  # as in `program <&- >&-`
        words = ["sh", "-c", 'exec "$@" ' + " ".join(f"{one}>&-" for one in close), "sh", *words]
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(words, cwd=ROOT, text=True, **given)  # type: ignore[call-overload,no-any-return]


def unread() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("case", ["many lines", "one at a time", "a few at its end"])
def test_a_reader_that_goes_away_ends_a_program_quietly(case: str) -> None:
    gone = unread()
    program = start(MAINS[case], stdout=gone)
    os.close(gone)
    _, told = program.communicate(timeout=60)
    assert (program.returncode, told) == (141, "")  # as every tool in front of `| head`


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [("an end of its own", 1, ""), ("a user's mistake", 2, "error: found none, expected one\n")],
)
def test_how_a_program_ended_counts_before_a_missing_reader(
    case: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED")  # without a buffer the first line ends it
    gone = unread()
    program = start(MAINS[case], stdout=gone)
    os.close(gone)
    assert program.communicate(timeout=60)[1] == told and program.returncode == code


def test_a_reader_of_notes_that_goes_away(tmp_path: Path) -> None:
    gone = unread()
    program = start(MAINS["notes"], stderr=gone)
    os.close(gone)
    program.communicate(timeout=60)
    assert program.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("case", ["many lines", "one at a time", "a few at its end", "an end of its own"])
def test_output_that_cannot_be_written_is_one_sentence(case: str) -> None:
    with open("/dev/full", "w") as full:
        program = start(MAINS[case], stdout=full)
        _, told = program.communicate(timeout=60)
    assert program.returncode == 2
    assert told == "error: the output of this program cannot be written: No space left on device\n"


@pytest.mark.parametrize("close", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_were_closed_are_empty_ones(close: tuple[int, ...]) -> None:
    main = "assert not sys.stdin.isatty(); assert sys.stdin.read() == ''; print('said'); "
    main += "print('noted', file=sys.stderr)"
    said, noted = start(main, close=close).communicate(timeout=60)
    assert said == ("" if 1 in close else "said\n")
    assert noted == ("" if 2 in close else "noted\n")


def test_a_fault_of_another_file_keeps_its_traceback() -> None:
    program = start("print('said'); raise OSError(28, 'No space left on device')")
    said, told = program.communicate(timeout=60)
    assert program.returncode == 1 and said.rstrip() == "said" and "Traceback" in told
