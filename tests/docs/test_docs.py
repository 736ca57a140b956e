"""The documentation stays true: links resolve, programs exist, flags are accepted, marked examples run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pages import MARKS, PAGES, README, ROOT, Block, anchors, blocks, links, prose, shell_commands
from warming import python

from llava.train.args import parse_args
from llava.train.old_flags import OLD_FLAGS
from llava.train.records import find_fault
from playground.digits.training import STAGES

ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = list(shell_commands())
# programs of others, and of the shell
FOREIGN = {"cd", "cp", "curl", "export", "mkdir", "printf", "rm", "source", "test"}
FOREIGN |= {"docker", "smg", "vllm-router"}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_images_resolve(page: Path) -> None:
    for target in links(page):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{_name(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{_name(page)}: {target} has no such heading"


def test_every_page_is_two_clicks_from_the_readme() -> None:
    def targets(page: Path) -> set[Path]:
        return {(page.parent / one.partition("#")[0]).resolve() for one in links(page) if "://" not in one}

    first = targets(README)
    second = {target for page in PAGES if page in first for target in targets(page)}
    assert set(PAGES) - {README} <= first | second


def test_marks_are_known() -> None:
    marks = {block.mark for block in ALL_BLOCKS if block.mark}
    assert marks <= set(MARKS)
    assert "run" in marks


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "quickstart.md"], ids=_name)
def test_numbers_are_those_of_the_recorded_run(page: Path) -> None:
    result = json.loads((ROOT / "docs" / "quickstart_result.json").read_text())
    text = prose(page)
    for kind, accuracy in result["accuracy"].items():
        assert f"| {result['n'][kind]} | {accuracy:.1%} |" in text, kind
    assert f"{result['svc_accuracy']:.1%}" in text
    assert f"| together | {result['seconds']['total']:.0f} |" in text


def test_numbers_of_lora_are_those_of_the_recorded_run() -> None:
    result = json.loads((ROOT / "docs" / "quickstart_lora_result.json").read_text())
    section = prose(ROOT / "docs" / "quickstart.md").partition("\n## With LoRA\n")[2].partition("\n## ")[0]
    assert result["reached"] and result["accuracy"]["which_digit"] > result["svc_accuracy"]
    for kind, accuracy in result["accuracy"].items():
        assert f"| {result['n'][kind]} | {accuracy:.1%} |" in section, kind
    assert f"| stage 2 with LoRA | {result['seconds']['lora']:.0f} |" in section
    for row in result["choice"]:
        assert f"| {row['which_digit']:.1%} | {row['mean']:.1%} |" in section
    chosen, recipe = result["choice"][0], STAGES["lora"]  # the best in front
    assert chosen["mean"] == max(row["mean"] for row in result["choice"])
    named = {"rank": "lora_r", "alpha": "lora_alpha"}
    for key in ("rank", "alpha", "learning_rate", "mm_projector_lr"):
        assert chosen[key] == recipe[named.get(key, key)]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_named_files_exist(page: Path) -> None:
    named = re.findall(r"`((?:llava|scripts|docs|tests|playground)/[\w./*{},-]+)`", prose(page))
    for name in named:
        alternatives = re.search(r"\{([\w,]+)\}", name)
        for part in alternatives.group(1).split(",") if alternatives else [""]:
            path = name if not alternatives else name.replace(alternatives.group(0), part)
            assert list(ROOT.glob(path.rstrip("/"))), f"{_name(page)} names {path}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_modules_that_are_named_within_their_room_exist(page: Path) -> None:
    """A name such as `data/sampler.py` is the end of the path of a file."""
    rooms = [ROOT / room for room in ("llava", "scripts", "docs", "tests", "playground")]
    for name in re.findall(r"`(\w+/[\w/{},]+\.py)`", prose(page)):
        alternatives = re.search(r"\{([\w,]+)\}", name)
        for part in alternatives.group(1).split(",") if alternatives else [""]:
            path = name if not alternatives else name.replace(alternatives.group(0), part)
            found = (ROOT / path).exists() or any(any(room.rglob(path)) for room in rooms)
            assert found, f"{_name(page)} names {path}, which does not exist"


def test_every_extra_is_in_the_table_of_installation() -> None:
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2]
    extras = re.findall(r"^([\w-]+) = \[", table.partition("\n[")[0], flags=re.MULTILINE)
    text = (ROOT / "docs" / "installation.md").read_text()
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE)) == sorted(extras)


def test_every_dependency_has_a_reason() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    core = re.findall(r'^    "([\w-]+)[><=]', project.partition("[project.optional")[0], flags=re.MULTILINE)
    extra = re.findall(r"^train = \[(.*?)\]", project, flags=re.MULTILINE | re.DOTALL)[0]
    train = re.findall(r'"([\w-]+)[><=]', extra)
    assert len(core) > 5 and len(train) > 3
    text = (ROOT / "docs" / "design.md").read_text()
    missing = [name for name in core + train if name not in text.lower()]
    assert not missing, f"docs/design.md gives no reason for {missing}"


# ---- programs and their flags ----


class _Captured(BaseException):
    """Carries the parser of a program out of its main function."""


_parse_known_args = argparse.ArgumentParser.parse_known_args


def _capture(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
    if not parser.add_help:  # one that looks ahead for a few flags, and lets the others pass
        return _parse_known_args(parser, *args, **kwargs)
    raise _Captured(parser)


@functools.cache
def _parser_of(program: str) -> argparse.ArgumentParser | None:
    """Run a program up to the point where it parses its command line; None if it never does."""
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", _capture),
        mock.patch.object(sys, "argv", [program]),
        mock.patch.object(sys, "path", [str((ROOT / program).parent), *sys.path]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            if (
                program == "llava.serve.test_message"
            ):  # pytest takes it for a test, and runpy stumbles over that
                program = "llava/serve/test_message.py"
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
        except _Captured as captured:
            return captured.args[0]
    return None


def _parser_of_words(module: str, words: Sequence[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser that a program of several words chooses, and what it is given to parse."""
    found: list[tuple[argparse.ArgumentParser, list[str]]] = []

    def capture(parser: argparse.ArgumentParser, given: Sequence[str], *args: Any) -> Any:
        found.append((parser, list(given)))
        raise _Captured(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", capture),
        mock.patch.object(sys, "argv", [module, *words]),
        contextlib.suppress(_Captured),
    ):
        runpy.run_module(module, run_name="__main__")
    return found[0]


def _python_program(block: Block, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return module or script (relative to the repository) and arguments of a `python ...` command."""
    if words[1] == "-c":
        ast.parse(words[2])
        return "-c", []
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"{block}: there is no module {words[2]}"
        return words[2], list(words[3:])
    script = words[1].lstrip("./")
    assert (ROOT / script).is_file(), f"{block}: there is no script {script}"
    return script, list(words[2:])


def _check_python(block: Block, words: Sequence[str]) -> None:
    program, arguments = _python_program(block, words)
    if program in ("-c", "venv", "pytest", "pip") or "--help" in arguments:
        return
    if program.startswith("llava/train/train"):
        parse_args(arguments)  # raises UserError for what it does not accept
        return
    if program == "llava.eval":
        parser, arguments = _parser_of_words(program, arguments)
    else:
        parser = _parser_of(program)
    if parser is None:
        assert not arguments, f"{block}: {program} takes no arguments"
        return

    def refuse(message: str) -> None:
        raise AssertionError(f"{block}: {program}: {message}")

    with mock.patch.object(parser, "error", refuse):
        _, unknown = parser.parse_known_args(arguments)
    assert not unknown, f"{block}: {program} does not know {unknown}"


def _check_shell_script(block: Block, words: Sequence[str]) -> None:
    script = ROOT / words[1]
    assert script.is_file(), f"{block}: there is no script {words[1]}"
    code = script.read_text()
    known = set(re.findall(r"--[\w-]+", code))
    if "common.sh" in code:  # a training script, which hands its arguments on
        parser = _parser_of("llava/train/train.py")
        assert parser is not None
        known |= set(parser._option_string_actions)
    elif "playground.digits.quickstart" in code:
        parser = _parser_of("playground.digits.quickstart")
        assert parser is not None
        known |= set(parser._option_string_actions)
    for flag in (word for word in words[2:] if word.startswith("--")):
        assert flag in known, f"{block}: {words[1]} does not know {flag}"


def _script_place(words: Sequence[str]) -> int:
    return next(index for index, word in enumerate(words) if word.endswith(".py"))


def _check_deepspeed(block: Block, words: Sequence[str]) -> None:
    place = _script_place(words)
    arguments = list(words[place + 1 :])
    assert (ROOT / arguments[arguments.index("--deepspeed") + 1]).is_file(), f"{block}: no DeepSpeed config"
    _check_python(block, ["python", *words[place:]])


def _check_pip(block: Block, words: Sequence[str]) -> None:
    extras = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    for wanted in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(wanted.split(",")) <= set(extras), f"{block}: unknown extra in {wanted}"
    for index, word in enumerate(words):
        if word in ("-c", "-r"):
            assert (ROOT / words[index + 1]).is_file(), f"{block}: there is no {words[index + 1]}"


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=[f"{b}-{' '.join(w)[:50]}" for b, w in COMMANDS])
def test_documented_commands_are_accepted(
    block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program = words[0]
    if program in ("python", "python3", ".venv/bin/python"):
        _check_python(block, words)
    elif program == "bash":
        _check_shell_script(block, words)
    elif program == "deepspeed":
        _check_deepspeed(block, words)
    elif program == "torchrun":
        place = words.index("-m") if "-m" in words else _script_place(words)
        _check_python(block, ["python", *words[place:]])
    elif program == "pip":
        _check_pip(block, words)
    else:
        assert program in FOREIGN, f"{block}: unknown program {program}"


TRAINING_PAGES = (
    *("training", "pretrain", "finetune", "data_format"),
    *("data_at_scale", "distributed", "resume", "memory"),
    "newer_llavas",
)


@pytest.mark.parametrize("page", TRAINING_PAGES)
def test_flags_in_tables_of_training_exist(page: str) -> None:
    parser = _parser_of("llava/train/train.py")
    doctor = _parser_of("llava.train.check_data")
    assert parser is not None and doctor is not None
    known = {*parser._option_string_actions, *doctor._option_string_actions, "--help"}
    known |= {f"--{name}" for name in OLD_FLAGS}
    cells = re.findall(r"`(--[^`]+)`", prose(ROOT / "docs" / f"{page}.md"))
    named = {flag for cell in cells for flag in re.findall(r"--[\w-]+", cell)}
    assert named <= known, f"{page} names unknown flags: {sorted(named - known)}"


# Programs of this library, and the words that choose what one of several words does. Those of the reference
# keep their flags, and training's are mostly transformers' own.
OWN_PROGRAMS = {
    **{f"llava.serve.{name}": [()] for name in ("cli", "openai_api", "controller", "model_worker")},
    **{f"llava.serve.{name}": [()] for name in ("sglang_worker", "register_worker", "test_message")},
    **{f"llava.{name}": [()] for name in ("serve.gradio_web_server", "train.check_data")},
    "llava.serve": [()],
    "llava.eval": [("answer", "custom"), ("score", "custom"), ("compare",), ("custom",), ("--suite",)],
}


@pytest.mark.parametrize("program", OWN_PROGRAMS)
def test_every_flag_of_a_program_is_documented(program: str) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"--[A-Za-z][\w-]*", text))
    for words in OWN_PROGRAMS[program]:
        parser = _parser_of_words(program, words)[0] if words else _parser_of(program)
        assert parser is not None
        for action in parser._actions:
            flags = [one for one in action.option_strings if one.startswith("--")]
            hidden = action.help in (None, argparse.SUPPRESS)
            assert not flags or hidden or named & set(flags), f"no page names {flags} of {program} {words}"


# ---- blocks of other languages ----


def _of(language: str) -> list[Block]:
    return [block for block in ALL_BLOCKS if block.language == language]


@pytest.mark.parametrize("block", _of("python"), ids=str)
def test_python_blocks_import_names_that_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llava"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), f"{block}: {node.module} has no {name.name}"


@pytest.mark.parametrize("block", _of("json"), ids=str)
def test_json_blocks_are_valid_records(block: Block) -> None:
    content = json.loads(block.text)
    for record in content if isinstance(content, list) else [content]:
        assert find_fault(record) == ""


def _pages_that_run() -> list[Path]:
    return [page for page in PAGES if any(block.mark == "run" for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages_that_run(), ids=_name)
def test_marked_blocks_run_in_order(page: Path, tmp_path: Path) -> None:
    for name in ("llava", "scripts", "playground"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "tests/data/checkpoints", tmp_path / "tests/data/checkpoints")
    interpreters = (str(Path(one).parent) for one in (python(), sys.executable))
    path = os.pathsep.join([*interpreters, os.environ["PATH"]])
    for block in blocks(page):
        if block.mark != "run":
            continue
        runner = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [python(), "-c"]
        result = subprocess.run(
            [*runner, block.text],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{block}:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
