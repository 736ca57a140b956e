"""What the programs that ask a model do: their process is silenced, their flags name the model."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Protocol

from transformers.utils import logging as transformers_logging

from llava.inference.loading import open_model
from llava.inference.model import LoadedModel


class ModelFlags(Protocol):
    """The flags that name a model and say how it is loaded."""

    model_path: str
    model_base: str | None
    device: str | None
    dtype: str | None
    load_8bit: bool
    load_4bit: bool


def open_from_flags(flags: ModelFlags) -> LoadedModel:
    """Load the model that a program's flags ask for. Raises UserError; see open_model."""
    return open_model(
        flags.model_path,
        flags.model_base,
        device=flags.device,
        dtype=flags.dtype,
        load_8bit=flags.load_8bit,
        load_4bit=flags.load_4bit,
    )


def quiet_libraries(*, modules: str = "", bars_on_terminal: bool = False) -> None:
    """Silence warnings and progress bars of other libraries, for all of the process; llava's messages stay.

    What somebody chose through TRANSFORMERS_VERBOSITY, PYTHONWARNINGS or -W stays. modules: a pattern of
    those whose warnings are silenced (default: all). bars_on_terminal: bars stay where a person sees them.
    """
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity_error()
    if not (bars_on_terminal and sys.stderr.isatty()):
        transformers_logging.disable_progress_bar()
    for name in ("huggingface_hub", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=modules)
