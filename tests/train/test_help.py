"""llava.train.help: what is recorded is the parser's help, and it is shown for its transformers only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llava.train import help as help_module
from llava.train.args import build_parser
from llava.train.help import RECORD, recorded, recorded_parser, show_help

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def other_release(tmp_path: Path) -> Path:
    content = json.loads(RECORD.read_text())
    changed = tmp_path / "help.json"
    changed.write_text(json.dumps({**content, "transformers": "5.16.9"}))
    return changed


def test_the_record_is_of_the_release_that_is_tested() -> None:
    tested = re.findall(r"^transformers==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert json.loads(RECORD.read_text())["transformers"] in tested


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_the_recorded_help_is_that_of_the_parser(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = recorded_parser()
    if parser is None:
        pytest.skip("the flags are recorded for another release of transformers")
    found, expected = parser.format_help(), build_parser().format_help()
    assert "--mm_projector_lr" in found and "--learning_rate" in found
    assert found == expected, "run `python -m llava.train.help` to record the flags again"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], True),
        (["-h"], True),
        (["--data_path", "a", "--help"], True),
        ([], False),
        (["--data_path", "help"], False),
    ],
    ids=["long", "short", "behind", "none", "value"],
)
def test_help_is_shown_to_who_asks_for_it(capsys, words, shown) -> None:
    if recorded_parser() is None:
        pytest.skip("the flags are recorded for another release of transformers")
    if not shown:
        show_help(["train.py", *words])
        assert capsys.readouterr().out == ""
        return
    with pytest.raises(SystemExit) as ended:
        show_help(["train.py", *words])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


def test_another_release_of_transformers_asks_the_parser(other_release, tmp_path, capsys) -> None:
    for record in (other_release, tmp_path / "none.json"):
        assert recorded_parser(record) is None
        show_help(["train.py", "--help"], record)  # returns: the parser of all flags answers
    assert capsys.readouterr().out == ""


def test_the_program_writes_what_the_parser_has(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(help_module, "RECORD", tmp_path / "help.json")
    help_module.main([])
    assert json.loads((tmp_path / "help.json").read_text()) == recorded(build_parser())
    if recorded_parser() is not None:
        assert (tmp_path / "help.json").read_text() == RECORD.read_text()
