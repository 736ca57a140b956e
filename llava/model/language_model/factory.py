"""LLaVA on any causal LM of transformers: config, model and head are made when a config of the kind is met.

`family_for("qwen3")` gives the `Family`; its classes are attributes of this module, made when they are looked
up: `from llava.model.language_model.factory import LlavaQwen3ForCausalLM`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llava._compat import make_configs_on_demand, supported_attention
from llava.model.checkpoints.errors import CheckpointError, first_line
from llava.model.language_model.config_mixin import ReadableByReference
from llava.model.language_model.family import FAMILIES, KERNELS, Family, register_family
from llava.model.language_model.probing import causal_class, fault_of, has_plain_head, small_model
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel

PREFIX = "llava_"

# model types of LLaVA-NeXT, and parts of its class names, that are not `llava_` and a model type
OTHER_NAMES = {"llava_qwen": "qwen2", "llava_qwen_moe": "qwen2_moe"}
OTHER_ARCHITECTURES = {"LlavaQwenForCausalLM": "qwen2", "LlavaQwenMoeForCausalLM": "qwen2_moe"}


class MadeConfig(ReadableByReference):
    """An LLM's config with the multimodal fields."""

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: object) -> Any:
        """Build it from the content of a `config.json`, also one that calls the type by another name."""
        return super().from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)


class MadeForCausalLM(LlavaMetaForCausalLM):
    """An LLM that sees images; the LLM's own class builds itself, and its body gets tower and projector."""

    body_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PreTrainedConfig) -> None:
        refuse_inexact(config)
        super().__init__(config)
        body = self.base_model
        body.__class__ = self.body_class  # the same module, with the mixin in front of its class
        body.attach_vision(config)
        self.post_init()  # again, for what the tower brings


def refuse_inexact(config: PreTrainedConfig, path: str = "") -> None:
    """Raise CheckpointError for an LLM that computes something from token ids in every layer.

    Image features have no token ids; Gemma 3n and the small ones of Gemma 4 would compute nonsense.
    """
    width = getattr(config, "hidden_size_per_layer_input", None)
    if width:
        raise CheckpointError(
            f"{path or 'This model'} is of type {config.model_type!r} with hidden_size_per_layer_input "
            f"{width}: each of its layers reads the token ids once more, which image features do not have, "
            "so LLaVA on it would not be exact. Take a model without such embeddings."
        )


# ---- which LLMs ----


def base_type_of(model_type: str | None) -> str | None:
    """Return the LLM's `model_type` that a name stands for: its own, `llava_` and its own, or LLaVA-NeXT's.

    None for what is no causal LM of the installed transformers. Nothing is imported.
    """
    if not isinstance(model_type, str):
        return None
    name = OTHER_NAMES.get(model_type, model_type.removeprefix(PREFIX))
    return name if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name in CONFIG_MAPPING else None


def base_type_of_class(name: str) -> str | None:
    """Return the `model_type` of the LLM under a class named Llava...ForCausalLM, None if there is none."""
    stem = name.removeprefix("Llava").removesuffix("ForCausalLM")
    return OTHER_ARCHITECTURES.get(name) or base_type_of(_types_by_stem().get(stem))


@functools.cache
def _types_by_stem() -> dict[str, str]:
    """Return model types by what the names of their classes here are made of: Qwen2 of Qwen2Config."""
    shortest_last = sorted(CONFIG_MAPPING_NAMES.items(), key=lambda entry: -len(entry[0]))
    return {name.removesuffix("Config"): model_type for model_type, name in shortest_last}


# ---- making them ----


def family_for(model_type: str) -> Family:
    """Return LLaVA's entry on an LLM, made and told to transformers' Auto classes if it is not there yet.

    model_type: of the LLM or of the LLaVA on it. Raises CheckpointError with the reason for an LLM that
    cannot be one.
    """
    base_type = base_type_of(model_type)
    if base_type is None:
        raise CheckpointError(f"{model_type!r} is no causal language model of the installed transformers.")
    known = next((one for one in FAMILIES if one.made and one.base_type == base_type), None)
    if known is not None:
        return known
    config_class = CONFIG_MAPPING[base_type]
    if config_class.model_type != base_type:  # another name of an LLM, as gpt-sw3 is of GPT-2
        return family_for(config_class.model_type)
    return _make(base_type, config_class, _tried(base_type, config_class))


def _tried(base_type: str, config_class: type[PreTrainedConfig]) -> Any:
    """Return a small model of a kind that can be a LLaVA. Raises CheckpointError for another."""
    reason = ""
    if config_class.sub_configs:
        reason = "it is made of several models, and is no language model alone"
    elif config_class().is_encoder_decoder:
        reason = "it is half of an encoder and decoder"
    else:
        try:
            model = small_model(base_type)
            reason = fault_of(model)
            if model.base_model is model or model.get_output_embeddings() is None:
                reason = "transformers does not tell its head from the rest of it"
        except Exception as error:  # whatever an unknown architecture objects to
            told = f"{type(error).__name__}: {first_line(error)}"
            reason = f"a small model of its kind could not be tried out ({told})"
    if reason:
        raise CheckpointError(
            f"LLaVA cannot stand on a language model of type {base_type!r}: {reason}. Take another one, or "
            "add a family of your own (docs/extending.md)."
        )
    return model


def _make(base_type: str, config_class: type[PreTrainedConfig], small: PreTrainedModel) -> Family:
    causal = causal_class(config_class)
    stem = config_class.__name__.removesuffix("Config")
    made: dict[str, Any] = {"__module__": __name__}
    bases: tuple[type, ...] = (MadeConfig, config_class)
    doc = f"The config of {config_class.__name__} with the multimodal fields."
    config = type(f"Llava{stem}Config", bases, {**made, "model_type": f"{PREFIX}{base_type}", "__doc__": doc})
    made["config_class"] = config
    body_bases = (LlavaMetaModel, type(small.base_model))
    body = type(f"Llava{stem}Model", body_bases, {**made, "__doc__": "It with tower and projector."})
    head = type(
        f"Llava{stem}ForCausalLM",
        (MadeForCausalLM, causal),
        {**made, "body_class": body, "__doc__": f"{causal.__name__} that sees images."},
    )
    globals().update({one.__name__: one for one in (config, body, head)})  # where pickle looks
    family = _entry(base_type, config, head, small)
    register_family(family)
    return family


def _entry(
    base_type: str, config: type[PreTrainedConfig], head: type[PreTrainedModel], small: PreTrainedModel
) -> Family:
    """Return the entry of made classes, its names read off a small model."""
    body = small.base_model
    offers = (*supported_attention(head), "eager")
    embedding = _name_in(body, small.get_input_embeddings())
    final_norm = _final_norm(body, embedding)
    head_name = _name_in(small, small.get_output_embeddings())
    names = (head.base_model_prefix, embedding, final_norm, head_name)
    like_llama = names == ("model", "embed_tokens", "norm", "lm_head")
    return Family(
        base_type,
        config,
        head,
        attention=tuple(kernel for kernel in KERNELS if kernel.startswith(offers)),
        liger=base_type,
        exports=like_llama and has_plain_head(small),
        spare_rows=True,
        made=True,
        positions=config.attribute_map.get("max_position_embeddings", "max_position_embeddings"),
        embedding=embedding,
        final_norm=final_norm,
        head=head_name,
    )


def _name_in(model: nn.Module, wanted: nn.Module | None) -> str:
    return next((name for name, module in model.named_modules() if module is wanted), "")


def _final_norm(body: nn.Module, embedding: str) -> str:
    """Return the name of the last norm, which stands beside the embeddings."""
    place = embedding.rpartition(".")[0]
    beside = body.get_submodule(place).named_children()
    norms = [
        name for name, module in beside if re.search("norm|ln", f"{name} {type(module).__name__}".lower())
    ]
    return f"{place}.{norms[-1]}".removeprefix(".") if norms else ""


# ---- how they are found ----


def made_config(model_type: str) -> type[PreTrainedConfig] | None:
    """Return the config class of a LLaVA's `model_type`, made if need be; None for another type."""
    if not model_type.startswith(PREFIX) or (base_type := base_type_of(model_type)) is None:
        return None
    return family_for(base_type).config_class


def __getattr__(name: str) -> Any:
    """Make the classes that are looked up by name, by a reader of pickles for one."""
    found = re.fullmatch("Llava(.+)(Config|Model|ForCausalLM)", name)
    base_type = base_type_of(_types_by_stem().get(found[1])) if found else None
    if base_type is not None:
        family_for(base_type)
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


make_configs_on_demand(CONFIG_MAPPING, made_config)
