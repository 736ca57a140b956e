"""What convert_hf and inspect say about their command lines: examples, and one sentence for a wrong one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable

import pytest

from llava.model import convert_hf
from llava.utils import run_program

CONVERT, INSPECT = "llava.model.convert_hf", "llava.model.inspect"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a program with arguments; returns its exit code and all it wrote."""

    def start(module: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as end:
            if module == INSPECT:
                runpy.run_module(module, run_name="__main__")
            else:
                run_program(convert_hf.main)
        written = capsys.readouterr()
        return int(end.value.code or 0), written.out + written.err

    return start


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        (
            CONVERT,
            (),
            "required: to-hf|from-hf|mmproj; for example: python -m llava.model.convert_hf to-hf ./",
        ),
        (CONVERT, ("./llava", "./hf"), "invalid choice: './llava'"),
        (CONVERT, ("to-hf",), "required: SRC, DST; for example: python -m llava.model.convert_hf to-hf ./"),
        (CONVERT, ("to-hf", "a"), "required: DST; for example: python -m llava.model.convert_hf to-hf ./"),
        (
            CONVERT,
            ("from-hf", "a"),
            "required: DST; for example: python -m llava.model.convert_hf from-hf ./",
        ),
        (CONVERT, ("mmproj",), "for example: python -m llava.model.convert_hf mmproj ./"),
        (CONVERT, ("to-hf", "a", "b", "--max-shard-gb", "x"), "--max-shard-gb: invalid float value: 'x'"),
        (CONVERT, ("to-hf", "a", "b", "--base", "c"), "unrecognized arguments: --base c"),
        (INSPECT, (), "required: CHECKPOINT; for example: python -m llava.model.inspect ./"),
        (INSPECT, ("a", "--yaml"), "unrecognized arguments: --yaml"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(
    module: str, arguments: tuple[str, ...], expected: str, run: Callable[..., tuple[int, str]]
) -> None:
    code, text = run(module, *arguments)
    assert code == 2
    assert text.count("\n") == 1 and text.startswith("error: ")
    assert expected in text
    assert "--help explains all arguments" in text


@pytest.mark.parametrize(
    ("module", "arguments", "lines"),
    [
        (CONVERT, (), ("to-hf ./checkpoints", "from-hf ./llava", "mmproj ./llava", "--model-base")),
        (CONVERT, ("to-hf",), ("SRC", "DST", "--model-base lmsys", "default: as stored")),
        (INSPECT, (), ("CHECKPOINT", "python -m llava.model.inspect ./checkpoints", "Exit status")),
    ],
)
def test_help_shows_examples(
    module: str, arguments: tuple[str, ...], lines: tuple[str, ...], run: Callable[..., tuple[int, str]]
) -> None:
    code, text = run(module, *arguments, "--help")
    assert code == 0
    assert "examples:" in text
    for line in lines:
        assert line in text
