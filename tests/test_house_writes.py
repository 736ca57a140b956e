"""What a user keeps is written, and command lines are read, in one place of the house each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from test_house import PACKAGE, ROOT, _name, _tree


def _renames(tree: ast.AST) -> Iterator[int]:
    """Yield the lines on which a file is renamed, by os, shutil or a method of Path."""
    names = {"replace", "rename", "renames", "move"}
    for node in ast.walk(tree):
        imported = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        if imported & names and isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            yield node.lineno
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of, name, given = ast.unparse(node.func.value), node.func.attr, len(node.args) + len(node.keywords)
        if of in ("os", "shutil") and name in names:
            yield node.lineno
        elif of not in ("dataclasses", "copy") and name in ("replace", "rename") and given == 1:
            yield node.lineno  # a str's replace has two arguments


def test_files_are_renamed_in_atomic_only() -> None:
    assert not [
        f"{_name(path)}:{line}: use atomic_file, atomic_folder or move of llava/atomic.py"
        for path in PACKAGE
        if path != ROOT / "llava/atomic.py"
        for line in _renames(_tree(path))
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "os.replace(a, b)",
        "os.rename(a, b)",
        "part.replace(path)",
        "part.rename(target=path)",
        "shutil.move(a, b)",
    ]
    + ["from os import replace", "Path(a).with_name('b').replace(c)"],
)
def test_a_rename_would_be_found(statement: str) -> None:
    assert list(_renames(ast.parse(statement)))
    assert not list(_renames(ast.parse("text.replace('a', 'b'); dataclasses.replace(one)")))


# Files that are written otherwise, and why.
WRITTEN_ELSEWHERE = {
    "llava/serve/web/log.py": "lines at the end of the log of conversations",
    "llava/lines.py": "files that grow by lines, each on the disk before it counts",
    "llava/train/checkpointing/claim.py": "the lock of a run",
    "llava/train/data/skipped.py": "what the processes of a run tell each other, in a temporary file",
    "llava/model/tools/inspection.py": "a config in a temporary folder",
}


def _writes(tree: ast.AST) -> Iterator[int]:
    """Yield the lines on which a file is opened for writing, but for the scratch file of atomic_file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        of = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
        modes = [one for one in texts if isinstance(one, str) and re.fullmatch("[rwxab+t]{1,3}", one)]
        opens = name == "open" and any(set(mode) & set("wxa+") for mode in modes)
        copies = of == "shutil" and name in ("copy", "copy2", "copyfile", "copytree")
        copies = copies and "scratch" not in ast.unparse(node.args[1])
        writes = bool(of) and name in ("write_text", "write_bytes", "touch")
        if (opens or copies or writes) and of != "scratch":
            yield node.lineno


def test_files_are_written_through_atomic_only() -> None:
    offenders = {
        f"{_name(path)}:{line}"
        for path in PACKAGE
        if path != ROOT / "llava/atomic.py"
        for line in _writes(_tree(path))
    }
    assert {one.partition(":")[0] for one in offenders} == set(WRITTEN_ELSEWHERE), (
        f"use atomic_file, write_text or atomic_folder of llava/atomic.py: {sorted(offenders)}"
    )


@pytest.mark.parametrize(
    "statement",
    ["open(a, 'w')", "open(a, mode='ab')", "path.open('x')", "path.write_text(b)", "shutil.copyfile(a, b)"]
    + ["(folder / 'x').write_bytes(b)", "path.touch()", "open(a, 'r+b')"],
)
def test_a_write_would_be_found(statement: str) -> None:
    assert list(_writes(ast.parse(statement)))
    for read in ("open(a)", "path.open('rb')", "scratch.write_text(a)", "write_text(a, b)", "open(a, 'rt')"):
        assert not list(_writes(ast.parse(read)))


# Parsers of single flags in front of the real one.
OTHER_PARSERS = {"llava/arguments.py", "llava/train/setup/noise.py"}


def test_programs_read_their_arguments_in_one_place() -> None:
    scripts = [path for path in (ROOT / "scripts").glob("*.py")]
    found = {_name(path) for path in [*PACKAGE, *scripts] if "argparse.ArgumentParser(" in path.read_text()}
    assert found <= OTHER_PARSERS, "use ProgramParser of llava/arguments.py"
