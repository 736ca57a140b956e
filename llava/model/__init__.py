"""LLaVA models; importing this package registers them with transformers' Auto classes."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from llava.utils import lazy_names

if TYPE_CHECKING:
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
    from llava.model.language_model.llava_mpt import LlavaMptConfig, LlavaMptForCausalLM
    from llava.model.language_model.registry import register_family

__all__ = [
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
    "register_family",
]

_HOMES = "llava.model.language_model"

__getattr__ = lazy_names(
    __name__,
    {
        "LlavaConfig": f"{_HOMES}.llava_llama",
        "LlavaLlamaForCausalLM": f"{_HOMES}.llava_llama",
        "LlavaMistralConfig": f"{_HOMES}.llava_mistral",
        "LlavaMistralForCausalLM": f"{_HOMES}.llava_mistral",
        "LlavaMptConfig": f"{_HOMES}.llava_mpt",
        "LlavaMptForCausalLM": f"{_HOMES}.llava_mpt",
        "register_family": f"{_HOMES}.registry",
    },
)

# While Python looks for the program of `python -m llava.model.<program>`, sys.argv begins with "-m". Its
# --help is not to wait for torch, and the program imports what it works with itself.
_STARTS_A_PROGRAM = sys.argv[:1] == ["-m"] and any(
    flag == "-m" and module.startswith(f"{__name__}.") for flag, module in pairwise(sys.orig_argv)
)

if not _STARTS_A_PROGRAM:
    importlib.import_module(f"{_HOMES}.registry")  # loads and registers every family
