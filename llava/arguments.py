"""The command line of every program: paths with ~, texts that are UTF-8, numbers that a computer can hold.

No program writes over a file that it reads: a `local_path` or `any_path` is read, an `output_path` written.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llava._compat import parser_actions
from llava.utils import UserError, shortened, text_fault

LARGEST_INT = 2**63 - 1  # what torch, Arrow and the hub's formats hold


# ---- what an argument is: give one of these as `type` ----


def plain_text(text: str) -> str:
    """Take a text, such as a question: valid Unicode without NUL."""
    if fault := text_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return text


def any_path(text: str) -> str:
    """Take the path of a file to read, or an address; ~ is the home folder. Its name may be any bytes."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(text_fault(text))
    return os.path.expanduser(text)


def local_path(text: str) -> str:
    """Take a path, or a folder or hub name, in UTF-8; ~ is the home folder."""
    return os.path.expanduser(plain_text(text))


def output_path(text: str) -> str:
    """Take the path of what is to be written, in UTF-8; ~ is the home folder."""
    if not text.strip():  # pathlib takes it for the current folder
        raise argparse.ArgumentTypeError("is empty; name the place to write to")
    return local_path(text)


def finite_float(text: str) -> float:
    """Take a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"is {shortened(text, 60)}; expected a finite number")
    return value


def bounded_int(text: str) -> int:
    """Take a whole number of at most 63 bits."""
    try:
        value = int(text)
    except ValueError:  # also for more digits than Python reads
        if text.strip().lstrip("+-").isdecimal():
            value = LARGEST_INT + 1
        else:
            raise
    if abs(value) > LARGEST_INT:
        raise argparse.ArgumentTypeError(f"is {shortened(text, 60)}; expected at most {LARGEST_INT}")
    return value


# ---- the parser ----


class ProgramParser(argparse.ArgumentParser):
    """Argument parser whose complaints are one sentence, and that takes only usable texts and numbers.

    Arguments without a `type` are a `plain_text`; `float` and `int` are finite and of at most 63 bits. A path
    says so with `type=local_path`, `any_path` or `output_path`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kind, reader in (
            (None, plain_text), (str, plain_text), (float, finite_float), (int, bounded_int)
        ):  # fmt: skip
            self.register("type", kind, reader)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse a command line. Raises UserError also for an output that is an input as well."""
        parsed = super().parse_args(args, namespace)
        read, written = ([*_files(self, parsed, kinds)] for kinds in ((local_path, any_path), (output_path,)))
        refuse_overwriting([one for one in read if os.path.isfile(one[1])], written)
        return parsed

    def add_subparsers(self, **kwargs: Any) -> Any:
        """Add programs to choose from; each reads its arguments itself."""
        programs = super().add_subparsers(**kwargs)
        programs.type = _as_given
        return programs

    def error(self, message: str) -> NoReturn:
        """Raise UserError: what is wrong, and where all arguments are explained."""
        raise UserError(f"{self.plain(message)} ({self.prog} --help explains all arguments)")

    def plain(self, message: str) -> str:
        """Turn a message of argparse about one argument into a sentence, of bounded length."""
        return shortened(re.sub(r"^argument (\S+?)(?:/\S+)?: (is|holds) ", r"\1 \2 ", message), 600)


def _as_given(text: str) -> str:
    return text


def _files(
    parser: argparse.ArgumentParser, parsed: argparse.Namespace, kinds: Collection[object]
) -> Iterator[tuple[str, Path]]:
    """Yield what arguments of these types name, but for folders: the argument as it is told, and its path."""
    for action in parser_actions(parser):
        value = getattr(parsed, action.dest, None)
        if isinstance(action.choices, Mapping) and value in action.choices:
            yield from _files(action.choices[value], parsed, kinds)
        elif action.type in kinds:
            long = [one for one in action.option_strings if one.startswith("--")]
            told = [*long, *action.option_strings, f"the argument {action.dest}"][0]
            several = isinstance(value, list) and len(value) > 1
            for number, one in enumerate(value if isinstance(value, list) else [value], start=1):
                if isinstance(one, str) and not os.path.isdir(one):  # of too long a path, pathlib raises
                    yield f"file {number} of {told}" if several else told, Path(one)


# ---- what is read is not written ----

Places = Mapping[str, Path | None] | Sequence[tuple[str, Path | None]]


def refuse_overwriting(read: Places, written: Places) -> None:
    """Raise UserError where a file that is to be written is one that is read, or two of them are one.

    Both: what a file is called on the command line -> its path; None for what was not given.
    """
    known = [(name, path) for name, path in _pairs(read) if path is not None]
    for name, path in _pairs(written):
        if path is None:
            continue
        for other, taken in known:
            if _is_one(path, taken):
                raise UserError(
                    f"{name} is {shortened(path)}, which is {other} as well, and would be overwritten; name "
                    "another file"
                )
        known.append((name, path))


def _pairs(places: Places) -> Sequence[tuple[str, Path | None]]:
    return [*places.items()] if isinstance(places, Mapping) else places


def _is_one(one: Path, other: Path) -> bool:
    """Tell whether two paths are those of one file, also through links and where it is not there yet."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def take_paths(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Let the named arguments of a parser be paths: for parsers that others have filled."""
    for action in parser_actions(parser):
        if action.dest in names:
            action.type = local_path
