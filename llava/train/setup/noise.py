"""What other libraries print while training: nothing but errors, unless --verbose_libraries asks for it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from transformers.utils import logging as transformers_logging

from llava.utils import StreamToLogger

logger = logging.getLogger(__name__)

FLAG = "--verbose_libraries"
# Loggers with handlers of their own, whose level is set when they are imported.
OWN_LOGGERS = ("DeepSpeed",)
LIBRARIES = r"(transformers|torch|peft|accelerate|deepspeed|bitsandbytes|huggingface_hub)(\.|$)"


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def quiet_libraries(argv: Sequence[str]) -> bool:
    """Silence other libraries unless a command line has --verbose_libraries; tell whether it was done.

    What somebody chose through TRANSFORMERS_VERBOSITY, PYTHONWARNINGS or -W stays. Bars of loading stay on a
    terminal, where a large model takes minutes.
    """
    # before all flags are read, since reading them makes transformers warn
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(FLAG, nargs="?", const="true", default="false", dest="verbose")
    if parser.parse_known_args(list(argv))[0].verbose.lower() in ("yes", "true", "t", "y", "1"):
        return False
    for name in OWN_LOGGERS:
        logging.getLogger(name).addFilter(_errors_only)
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity_error()
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=LIBRARIES)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    return True


@contextlib.contextmanager
def prints_as_messages(verbose: bool) -> Iterator[None]:
    """Turn what a library prints into messages of level DEBUG; verbose: let it print."""
    if verbose:
        yield
        return
    with contextlib.redirect_stdout(StreamToLogger(logger, logging.DEBUG)):
        yield
