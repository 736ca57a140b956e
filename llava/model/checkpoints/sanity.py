"""Checks of a config.json before anything is built from it: one sentence that names file and field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.model.checkpoints.errors import CheckpointError, shown

# Whole numbers of a model's config and what no model comes near: a damaged number must not start to fill the
# memory, or to build layers for hours. MPT's names stand beside those of the others.
LARGEST = {
    "vocab_size": 10**7,
    "hidden_size": 10**6,
    "d_model": 10**6,
    "intermediate_size": 10**7,
    "num_hidden_layers": 10**4,
    "n_layers": 10**4,
    "num_attention_heads": 10**5,
    "n_heads": 10**5,
    "num_key_value_heads": 10**5,
    "head_dim": 10**5,
    "max_position_embeddings": 10**9,
    "max_seq_len": 10**9,
    "expansion_ratio": 10**3,
    "image_size": 10**5,
    "patch_size": 10**5,
    "num_channels": 10**3,
    "projection_dim": 10**6,
    "mm_hidden_size": 10**7,
}
PAIRS = ("image_size", "patch_size")  # some towers write (height, width)
# width and heads that have to divide it
HEADS = (("hidden_size", "num_attention_heads"), ("d_model", "n_heads"))


def check_config(config: Mapping[str, Any], path: str) -> None:
    """Raise CheckpointError for values of a `config.json` that no model can be built from.

    config: of a language model, a LLaVA or a vision tower, those inside `vision_config` and `text_config`
    included. A field that is absent, or null, is left to the model's default.
    """
    place = f"{path}: config.json"
    for name, largest in LARGEST.items():
        value = config.get(name)
        if value is None or (name in PAIRS and isinstance(value, list)):  # their own class checks pairs
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise CheckpointError(
                f"{place} has {name} {shown(value)}; expected a whole number from 1 to {largest:,}. "
                "Compare it with the original's, or copy it again."
            )
    for width, heads in HEADS:
        count = config.get(heads)
        if config.get(width) and count and config[width] % count and not config.get("head_dim"):
            raise CheckpointError(
                f"{place} has {width} {config[width]} and {heads} {count}, which does not divide it; copy it "
                "again from the original."
            )
    architectures = config.get("architectures")
    if architectures is not None and not _is_list_of_texts(architectures):
        raise CheckpointError(
            f"{place} has architectures {shown(architectures)}; expected a list of class names."
        )
    for name in ("model_type", "_name_or_path"):
        if config.get(name) is not None and not isinstance(config[name], str):
            raise CheckpointError(f"{place} has {name} {shown(config[name])}; expected a text.")
    for name in ("quantization_config", "vision_config", "text_config"):
        inner = config.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise CheckpointError(f"{place} has {name} {shown(inner)}; expected an object.")
        if isinstance(inner, Mapping) and name != "quantization_config":
            check_config(inner, f"{path} ({name})")


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
