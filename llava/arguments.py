"""The command line of every program: paths with ~, texts that are UTF-8, numbers that a computer can hold."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Collection
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


def take_paths(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Let the named arguments of a parser be paths: for parsers that others have filled."""
    for action in parser_actions(parser):
        if action.dest in names:
            action.type = local_path
