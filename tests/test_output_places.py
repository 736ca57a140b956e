"""No program writes over what it reads: every output flag of every program x every input flag, one file."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava._compat import parser_actions
from llava.arguments import ProgramParser, any_path, local_path, output_path
from llava.utils import UserError

ROOT = Path(__file__).resolve().parents[1]
# Programs of programs: the words that choose one of them.
WORDS = {
    "llava/eval/run/command.py": [["compare"], ["score", "digits"], ["answer", "digits"], ["digits"]],
    "llava/model/convert_hf.py": [["to-hf"], ["from-hf"], ["mmproj"]],
}


def programs() -> Iterator[tuple[str, list[str]]]:
    """Yield the programs and the words that choose one; training reads its flags another way."""
    for path in sorted([*(ROOT / "llava").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]):
        name = str(path.relative_to(ROOT))
        is_program = "ArgumentParser" in (text := path.read_text()) or "parser" in text
        if is_program and "\ndef main(" in text and not name.startswith("llava/train/train"):
            for words in WORDS.get(name, [[]]):
                yield name, words


class Captured(Exception):
    """A program's parser, instead of what it would do."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Return the parser that a program's main() asks, or is called with the arguments of."""
    if name.startswith("scripts/"):
        found = runpy.run_path(str(ROOT / name))
    else:
        found = vars(importlib.import_module(name.removesuffix(".py").replace("/", ".")))
    takes = [*inspect.signature(found["main"]).parameters]
    if takes == ["args"]:
        parser = found["build_parser"]()
        assert isinstance(parser, argparse.ArgumentParser)
        return parser

    def capture(self: ProgramParser, *args: object, **kwargs: object) -> argparse.Namespace:
        raise Captured(self)

    monkeypatch.setattr(sys, "argv", [name, *words])
    with monkeypatch.context() as patched, pytest.raises(Captured) as captured:
        patched.setattr(ProgramParser, "parse_args", capture)
        found["main"](*[words for _ in takes])
    return captured.value.parser


def actions_of(parser: argparse.ArgumentParser, words: list[str]) -> list[argparse.Action]:
    """Return the arguments of a parser, or of the program in it that the words choose."""
    for one in parser_actions(parser):
        if isinstance(one.choices, dict) and words:
            return actions_of(one.choices[words[0]], [])
    return parser_actions(parser)


def given(action: argparse.Action, value: str) -> list[str]:
    return [action.option_strings[0], value] if action.option_strings else [value]


def command(actions: list[argparse.Action], places: dict[str, str]) -> list[str]:
    """Return a command line with all that is required, and the named places."""
    line, last = [], []
    for one in actions:
        if one.dest not in places and (one.option_strings and not one.required):
            continue
        value = places.get(one.dest) or (str(next(iter(one.choices))) if one.choices else "1")
        (line if one.option_strings else last).extend(given(one, value))
    return line + last


CASES = [pytest.param(name, words, id=" ".join([name, *words])) for name, words in programs()]


@pytest.mark.parametrize(("name", "words"), CASES)
def test_an_output_is_no_input(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = parser_of(name, words, monkeypatch)
    actions = actions_of(parser, words)
    inputs = [one for one in actions if one.type in (local_path, any_path)]
    outputs = [one for one in actions if one.type is output_path]
    monkeypatch.chdir(tmp_path)
    file, link = tmp_path / "file.json", tmp_path / "link.json"
    file.write_text("{}")
    link.symlink_to(file)
    chosen = words if any(isinstance(one.choices, dict) for one in parser_actions(parser)) else []
    for output in outputs:
        for taken in inputs:
            for place in ("file.json", "./file.json", str(link), f"../{tmp_path.name}/file.json"):
                line = command(actions, {taken.dest: str(file), output.dest: place})
                with pytest.raises(UserError, match="as well, and would be overwritten") as told:
                    parser.parse_args([*chosen, *line])
                assert "\n" not in str(told.value)
    assert file.read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("llava/eval/eval_gpt_review.py", "output"),
        ("llava/eval/eval_gpt_review_bench.py", "output"),
        ("llava/eval/eval_gpt_review_visual.py", "output"),
        ("llava/eval/eval_science_qa.py", "output_result"),
        ("llava/eval/model_vqa.py", "answers_file"),
        ("llava/eval/qa_baseline_gpt35.py", "output"),
        ("scripts/convert_gqa_for_eval.py", "dst"),
        ("scripts/convert_seed_for_submission.py", "result_upload_file"),
        ("scripts/convert_vizwiz_for_submission.py", "result_upload_file"),
    ],
)
def test_the_table_holds_the_programs_that_write(
    name: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a program not in the table, nothing above would have been asked of it."""
    assert (name, []) in [*programs()]
    written = [
        one.dest for one in parser_actions(parser_of(name, [], monkeypatch)) if one.type is output_path
    ]
    assert output in written


@pytest.mark.parametrize("file", ["problems.json", "pid_splits.json"])
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("eval_science_qa", ["--result-file", "a.jsonl", "--output-result", "r.json", "--output-file"]),
        ("eval_science_qa", ["--result-file", "a.jsonl", "--output-file", "r.json", "--output-result"]),
        (
            "eval_science_qa_gpt4_requery",
            ["--gpt4-result", "g", "--requery-result", "q", "--our-result", "o", "--output-result"],
        ),
    ],
)
def test_the_problems_of_science_qa_are_inputs_as_well(
    name: str, flags: list[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / file
    place.write_text("{}")
    monkeypatch.setattr(sys, "argv", [name, "--base-dir", str(tmp_path), *flags, f"{tmp_path}/./{file}"])
    with pytest.raises(UserError, match=f"is {file} of --base-dir as well"):
        importlib.import_module(f"llava.eval.{name}").main()
    assert place.read_text() == "{}"


def test_the_workbook_of_mmbench_is_not_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mine.xlsx"
    table.write_text("index\tquestion\n")
    (tmp_path / "mine.jsonl").write_text('{"question_id": 1, "text": "A"}\n')
    flags = {"annotation-file": table, "result-dir": tmp_path, "upload-dir": tmp_path, "experiment": "mine"}
    line = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["convert", *line])
    main = runpy.run_path(str(ROOT / "scripts/convert_mmbench_for_submission.py"))["main"]
    with pytest.raises(UserError, match="which is --annotation-file as well"):
        main()
    assert table.read_text() == "index\tquestion\n"


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    parser = ProgramParser()
    parser.add_argument("-o", "--one", type=output_path)
    parser.add_argument("--two", type=output_path)
    with pytest.raises(UserError, match="--two is .*, which is --one as well"):
        parser.parse_args(["--one", str(tmp_path / "a"), "--two", f"{tmp_path}/./a"])
    os.mkdir(tmp_path / "folder")  # a folder takes files of many names
    parser.parse_args(["--one", str(tmp_path / "folder"), "--two", str(tmp_path / "folder")])


def test_an_input_among_several_counts(tmp_path: Path) -> None:
    parser = ProgramParser()
    parser.add_argument("--answers", "-a", type=local_path, nargs="+")
    parser.add_argument("--output", "-o", type=output_path)
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match="--output is .*, which is file 2 of --answers as well"):
        parser.parse_args(["-a", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "b")])
    parser.parse_args(["-a", str(tmp_path / "b"), "-o", str(tmp_path / "c")])
