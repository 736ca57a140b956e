"""The --help of training without the imports of training, from a record of what its flags are.

Two thirds of the flags belong to transformers' TrainingArguments, whose import takes ten seconds. help.json
holds the flags as the parser of llava.train.args has them with one release of transformers; with any other
release that parser itself is asked. `python -m llava.train.help` records them again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import KeysView, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llava._compat import parser_actions
from llava.arguments import ProgramParser
from llava.atomic import write_text
from llava.utils import run_program

RECORD = Path(__file__).with_name("help.json")
# What of a flag its help is made of.
SHOWN = ("option_strings", "dest", "nargs", "default", "choices", "metavar", "help", "required")


def show_help(argv: Sequence[str], record: Path = RECORD) -> None:
    """Print the help and exit with 0 where a command line asks for it and it is known for this transformers.

    argv: with the program's name in front. Does nothing where the parser of all flags has to answer.
    """
    if not {"-h", "--help"}.intersection(argv[1:]):
        return
    parser = recorded_parser(record)
    if parser is not None:
        parser.print_help()
        parser.exit()


def recorded_parser(record: Path = RECORD) -> argparse.ArgumentParser | None:
    """Return a parser that prints the help; None where none is recorded for the transformers installed."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["transformers"] != version("transformers"):
            return None
    except (FileNotFoundError, PackageNotFoundError):
        return None
    parser = ProgramParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter, epilog=content["epilog"])
    for flag in content["flags"]:
        parser.add_argument(*flag.pop("option_strings"), action=_Shown, **flag)
    return parser


class _Shown(argparse.Action):
    """A flag that is shown and never read."""

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Never called: nothing is parsed."""


def recorded(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return what a parser's help is made of, as JSON holds it."""
    actions = [one for one in parser_actions(parser) if one.dest != "help"]  # every parser has that
    flags = [{name: _plain(vars(action)[name]) for name in SHOWN} for action in actions]
    return {"transformers": version("transformers"), "epilog": parser.epilog, "flags": flags}


def _plain(value: object) -> object:
    """Return a value as JSON holds it; others become the text that help shows."""
    if isinstance(value, (list, tuple, KeysView)):
        return [_plain(one) for one in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Record the flags of training as they are with the installed transformers."""
    ProgramParser(prog="python -m llava.train.help", description=main.__doc__).parse_args(argv)
    from llava.train.args import build_parser  # transformers, which this module is there to avoid

    content = recorded(build_parser())
    flags = content.pop("flags")
    head = json.dumps(content, ensure_ascii=False)[1:-1]
    rows = ",\n".join(json.dumps(one, ensure_ascii=False) for one in flags)
    write_text(RECORD, f'{{{head}, "flags": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    run_program(main)
