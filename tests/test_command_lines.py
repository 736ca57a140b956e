"""Arguments of every program: ~ in paths, texts and numbers that cannot be used, folders that are missing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import PROGRAMS, ROOT, complaint_of, start

from llava.arguments import ProgramParser, any_path, local_path, output_path
from llava.images import ImageError, load_image
from llava.utils import UserError, run_program

CELLS = {
    part: [(name, argument) for name, program in PROGRAMS.items() for argument in getattr(program, part)]
    for part in ("paths", "models", "texts", "numbers")
}


@pytest.fixture
def complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a program that has to end with exit code 2; returns its one sentence."""
    return lambda name, **other: complaint_of(name, tmp_path, monkeypatch, capsys, **other)


# ---- what the parsers make of paths ----


@pytest.mark.parametrize(("name", "argument"), CELLS["paths"])
def test_home_in_every_path(
    name: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """~ is expanded by the parser, whatever the program does with the path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    program = PROGRAMS[name]
    seen: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_known_args

    def keep(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> object:
        found = parse(self, *args, **kwargs)  # type: ignore[call-overload]
        seen.append(found[0])
        return found

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", keep)
    with pytest.raises(SystemExit):
        start(program, program.words(tmp_path, **{argument: "~/some where/x"}), monkeypatch)
    values = [getattr(one, argument.replace("-", "_"), None) for one in seen]
    assert f"{tmp_path}/some where/x" in values, values


# ---- what cannot be used ----


@pytest.mark.parametrize("kind", ["~/none/llava-x", "./none-x", "/none/x", "~nobody-here/x", "none/a/b"])
@pytest.mark.parametrize(("name", "argument"), CELLS["models"])
def test_a_missing_folder_is_no_hub_name(
    name: str, argument: str, kind: str, complaint: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked for a folder")

    monkeypatch.setattr("transformers.utils.cached_file", asked)
    monkeypatch.setattr("transformers.utils.hub.cached_file", asked)
    told = complaint(name, **{argument: kind})
    assert "There is no folder" in told or "is missing" in told, told
    assert kind.rpartition("/")[2] in told


@pytest.mark.parametrize(("name", "argument"), CELLS["texts"] + CELLS["paths"])
def test_bytes_that_are_no_text(name: str, argument: str, complaint: Callable[..., str]) -> None:
    if argument == "image-file":  # files may have such names, see below
        return
    told = complaint(name, **{argument: "a\udcff"})
    assert "holds the byte 0xff, which is no UTF-8" in told and argument.lower() in told.lower()


@pytest.mark.parametrize("value", ["1e400", str(10**30), "9" * 5000, "-" + "9" * 40])
@pytest.mark.parametrize(("name", "argument"), CELLS["numbers"])
def test_numbers_that_are_too_large(
    name: str, argument: str, value: str, complaint: Callable[..., str]
) -> None:
    told = complaint(name, **{argument: value})
    named = argument.replace("-", "_") in told.replace("-", "_")
    # a float can hold 1e30, and is judged when the model is there, which it is not
    assert named or (value == str(10**30) and "There is no folder" in told), told


@pytest.mark.parametrize("name", ["make_delta", "apply_delta", "consolidate", "extract", "merge", "to-hf"])
def test_an_empty_output_is_not_the_current_folder(name: str, complaint: Callable[..., str]) -> None:
    program = PROGRAMS[name]
    output = next(one for one, value in program.needs.items() if value == "{tmp}/out")
    assert "is empty; name the place to write to" in complaint(name, **{output: ""})


# these differ from llava.train.train in the attention alone
DOORS = {"llava/train/train_mem.py", "llava/train/train_xformers.py"}
WITHOUT_ARGUMENTS = {"llava/train/help.py"}


def test_every_program_is_in_the_table() -> None:
    named = {one.module.removesuffix(".py").replace(".", "/") + ".py" for one in PROGRAMS.values()}
    files = [*(ROOT / "llava").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    found = {
        str(file.relative_to(ROOT))
        for file in files
        if "__main__" in file.read_text() and "run_program(" in file.read_text()
    }
    assert found - DOORS - WITHOUT_ARGUMENTS == named, "add a row to PROGRAMS of tests/programs.py"


# ---- the parts ----


def test_readers() -> None:
    parser = ProgramParser(prog="p")
    parser.add_argument("--text")
    parser.add_argument("--int", type=int)
    parser.add_argument("--float", type=float)
    parser.add_argument("--in", type=local_path)
    parser.add_argument("--image", type=any_path)
    parser.add_argument("--out", type=output_path)
    words = ["--text=ä 🙂", "--int=-5", "--float=1e-3", "--in=a~b", "--image=\udcff", f"--out={2**63}"]
    found = vars(parser.parse_args(words))
    assert found == {
        "text": "ä 🙂",
        "int": -5,
        "float": 1e-3,
        "in": "a~b",
        "image": "\udcff",
        "out": str(2**63),
    }
    for word, message in (
        (f"--int={2**63}", rf"^--int is {2**63}; expected at most"),
        ("--float=nan", "^--float is nan; expected a finite number"),
        ("--float=x", "^argument --float: invalid float value: 'x'"),
        ("--int=" + "x" * 5000, r"^argument --int: invalid int .{0,600}characters"),
        ("--text=a\0", "^--text holds a NUL character"),
        ("--image=a\0", "^--image holds a NUL character"),
        ("--text=\ud83d", "^--text holds half a character"),
        ("--out= ", "^--out is empty"),
    ):
        with pytest.raises(UserError, match=message):
            parser.parse_args([word])


def test_an_image_whose_name_is_no_text(tmp_path: Path) -> None:
    from PIL import Image

    file = f"{tmp_path}/bild-\udcfc.png"
    Image.new("RGB", (2, 2)).save(file)
    assert load_image(file).size == (2, 2)
    for name in (f"{tmp_path}/\udcff.png", "a\0.png", "x" * 5000):
        with pytest.raises(ImageError, match="cannot be read") as caught:
            load_image(name)
        assert len(str(caught.value)) < 500


def test_a_program_that_ends_with_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_program(lambda: ProgramParser(prog="p").parse_args(["\udcff"]))
    assert "unrecognized" in capsys.readouterr().err
