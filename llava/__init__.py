"""Public names of the library, loaded on first use: `import llava` alone loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.inference.assistant import load
    from llava.model.builder import load_pretrained_model
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
    from llava.model.language_model.llava_mpt import LlavaMptConfig, LlavaMptForCausalLM
    from llava.model.tokenizer import load_tokenizer

__all__ = [
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
    "load",
    "load_pretrained_model",
    "load_tokenizer",
]

_HOME_OF = {
    "LlavaConfig": "llava.model.language_model.llava_llama",
    "LlavaLlamaForCausalLM": "llava.model.language_model.llava_llama",
    "LlavaMistralConfig": "llava.model.language_model.llava_mistral",
    "LlavaMistralForCausalLM": "llava.model.language_model.llava_mistral",
    "LlavaMptConfig": "llava.model.language_model.llava_mpt",
    "LlavaMptForCausalLM": "llava.model.language_model.llava_mpt",
    "load": "llava.inference.assistant",
    "load_pretrained_model": "llava.model.builder",
    "load_tokenizer": "llava.model.tokenizer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'llava' has no attribute {name!r}; it exports {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
