"""Which family a config belongs to, and what follows from it; loads the file of each family."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava._compat import supported_attention
from llava.model import language_model
from llava.model.checkpoints.errors import CheckpointError, explained
from llava.model.checkpoints.foreign import foreign_config
from llava.model.language_model.factory import (
    OTHER_NAMES,
    PREFIX,
    base_type_of,
    base_type_of_class,
    family_for,
    refuse_inexact,
)
from llava.model.language_model.family import FAMILIES, KERNELS, Family, register_family

__all__ = [
    "FAMILIES",
    "KERNELS",
    "Family",
    "family_of",
    "find_family",
    "is_llava",
    "kernels_of",
    "llava_config",
    "position_fields",
    "positions_of",
    "register_family",
]

for _found in pkgutil.iter_modules(language_model.__path__):
    if _found.name.startswith("llava_"):  # one file a family, which registers itself
        importlib.import_module(f"{language_model.__name__}.{_found.name}")


def is_llava(config: Mapping[str, Any]) -> bool:
    """Tell whether the content of a `config.json` belongs to a LLaVA model."""
    architectures = config.get("architectures") or []
    return bool(config.get("mm_vision_tower")) or any(name.startswith("Llava") for name in architectures)


def find_family(model_type: str | None) -> Family | None:
    """Return the family of a `model_type`, of a LLaVA or of a text model; None for one that is not known yet.

    Families of the factory are known once `family_of` has met a config of their kind.
    """
    if model_type in OTHER_NAMES and not any(one.llava_type == model_type for one in FAMILIES):
        model_type = PREFIX + OTHER_NAMES[model_type]
    named = [one for one in FAMILIES if model_type in (one.base_type, one.llava_type)]
    return min(named, key=lambda one: one.made, default=None)


def family_of(config: Mapping[str, Any], path: str = "") -> Family:
    """Return the family of a `config.json`, of a LLaVA or of a text model, made if it is not known yet.

    First releases and LLaVA-NeXT wrote `model_type` "llava"; their architecture names the class. Raises
    CheckpointError for a type that cannot be a LLaVA; `path`, the folder, is named in it.
    """
    model_type = config.get("model_type")
    if family := find_family(model_type):
        return family
    architectures = [str(name) for name in config.get("architectures") or []]
    for family in FAMILIES:
        if family.model_class.__name__ in architectures:
            return family
    if foreign := foreign_config(config, path or "This model"):
        raise CheckpointError(foreign)
    base_types = [base_type_of(model_type), *(base_type_of_class(name) for name in architectures)]
    base_type = next(filter(None, base_types), None)
    if base_type is None:
        raise CheckpointError(
            f"{path and f'{path}: '}config.json has model_type {model_type!r} and architectures "
            f"{architectures}, which name no language model that transformers {__version__} knows; expected "
            f"its model_type, or llava_ and its model_type."
        )
    try:
        return find_family(base_type) or family_for(base_type)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}" if path else str(error)) from error


def llava_config(config: Mapping[str, Any], path: str = "") -> Any:
    """Build the LLaVA config object from the content of a `config.json`, of a LLaVA or of a text model.

    Raises CheckpointError that names `path`, the folder, for fields that it cannot be built from.
    """
    family = family_of(config, path)
    with explained(path or "This model"):
        built = family.config_class.from_dict({**config, "model_type": family.config_class.model_type})
    refuse_inexact(built, path)
    return built


# ---- what can be asked of any LLM, with an entry or without ----


def kernels_of(model_type: str | None) -> tuple[str, ...]:
    """Return the attention kernels that an LLM offers: by its entry, else by what transformers says of it."""
    if family := find_family(model_type):
        return family.attention
    found = (
        MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[model_type], None)
        if model_type in CONFIG_MAPPING
        else None
    )
    if found is None:
        return KERNELS
    offers = supported_attention(found[0] if isinstance(found, tuple) else found)
    return tuple(name for name in KERNELS if name.startswith((*offers, "eager")))


def position_fields() -> tuple[str, ...]:
    """Return the names that configs have for the longest input."""
    return tuple(dict.fromkeys(one.positions for one in FAMILIES))


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return the longest input of a `config.json`; None if it does not tell."""
    family = find_family(config.get("model_type"))
    fields = position_fields() if family is None else (family.positions, *position_fields())
    return next((config[name] for name in fields if config.get(name)), None)
