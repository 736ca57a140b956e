"""Which LLaVA class belongs to a config: the table of LLM families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from llava.model.checkpoints.errors import CheckpointError, explained
from llava.model.checkpoints.foreign import foreign_config
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptConfig, LlavaMptForCausalLM


@dataclass(frozen=True)
class Family:
    """One LLM family: its text model's `model_type`, and the LLaVA classes on it."""

    base_type: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]


FAMILIES = (
    Family("llama", LlavaConfig, LlavaLlamaForCausalLM),
    Family("mistral", LlavaMistralConfig, LlavaMistralForCausalLM),
    Family("mpt", LlavaMptConfig, LlavaMptForCausalLM),
)


def is_llava(config: Mapping[str, Any]) -> bool:
    """Tell whether the content of a `config.json` belongs to a LLaVA model."""
    architectures = config.get("architectures") or []
    return bool(config.get("mm_vision_tower")) or any(name.startswith("Llava") for name in architectures)


def family_of(config: Mapping[str, Any], path: str = "") -> Family:
    """Return the family of a `config.json`, of a LLaVA or of a text model.

    First releases wrote `model_type` "llava"; their architecture names the class. Raises CheckpointError for
    an unknown type; `path`, the folder, is named in it.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in (family.base_type, family.config_class.model_type):
            return family
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if family.model_class.__name__ in architectures:
            return family
    if foreign := foreign_config(config, path or "This model"):
        raise CheckpointError(foreign)
    known = ", ".join(f"{f.base_type}, {f.config_class.model_type}" for f in FAMILIES)
    raise CheckpointError(
        f"{path and f'{path}: '}config.json has model_type {model_type!r} and architectures {architectures}; "
        f"known model types: {known}. LLaVA on another LLM, e.g. LLaVA-NeXT's llava_qwen, is loaded with "
        f"its own project's code."
    )


def llava_config(config: Mapping[str, Any], path: str = "") -> Any:
    """Build the LLaVA config object from the content of a `config.json`, of a LLaVA or of a text model.

    Raises CheckpointError that names `path`, the folder, for fields that it cannot be built from.
    """
    family = family_of(config, path)
    with explained(path or "This model"):
        return family.config_class.from_dict({**config, "model_type": family.config_class.model_type})
