"""What other libraries print while training: nothing but errors, unless --verbose_libraries asks for it."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator, Sequence

from llava.inference.program import quiet_libraries
from llava.utils import StreamToLogger

logger = logging.getLogger(__name__)

FLAG = "--verbose_libraries"
# Loggers with handlers of their own, whose level is set when they are imported.
OWN_LOGGERS = ("DeepSpeed",)
LIBRARIES = r"(transformers|torch|peft|accelerate|deepspeed|bitsandbytes|huggingface_hub)(\.|$)"


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def quiet_unless_verbose(argv: Sequence[str]) -> bool:
    """Silence other libraries unless a command line has --verbose_libraries; tell whether it was done.

    Bars of loading stay on a terminal, where a large model takes minutes.
    """
    # before all flags are read, since reading them makes transformers warn
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(FLAG, nargs="?", const="true", default="false", dest="verbose")
    if parser.parse_known_args(list(argv))[0].verbose.lower() in ("yes", "true", "t", "y", "1"):
        return False
    for name in OWN_LOGGERS:
        logging.getLogger(name).addFilter(_errors_only)
    quiet_libraries(modules=LIBRARIES, bars_on_terminal=True)
    return True


@contextlib.contextmanager
def prints_as_messages(verbose: bool) -> Iterator[None]:
    """Turn what a library prints into messages of level DEBUG; verbose: let it print."""
    if verbose:
        yield
        return
    with contextlib.redirect_stdout(StreamToLogger(logger, logging.DEBUG)):
        yield
