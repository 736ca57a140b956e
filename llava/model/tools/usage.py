"""The argument parser of the weight tools: examples in its help, one sentence for a wrong command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from llava.arguments import ProgramParser
from llava.utils import UserError


class ExampleParser(ProgramParser):
    """Argument parser that ends its help with examples, and its complaints with the first of them."""

    def __init__(self, *, examples: Sequence[str] = (), **kwargs: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.examples = tuple(examples)
        if examples:
            self.epilog = "\n".join(["examples:", *(f"  {example}" for example in examples)])

    def error(self, message: str) -> NoReturn:
        """Raise UserError: what is wrong, an example, and where all arguments are explained."""
        example = f"; for example: {self.examples[0]}" if self.examples else ""
        raise UserError(f"{self.plain(message)}{example} ({self.prog} --help explains all arguments)")
