"""Which template: the ONE rule for checkpoints, and what training's --version means."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llava.conversation.registry import TEMPLATES, Template, conv_templates, find_template
from llava.conversation.tokenizer_template import CHAT_TEMPLATE

logger = logging.getLogger(__name__)

# The reference trains these with its default template, which is no template of that name.
TRAINED_AS_VICUNA_V1 = ("v0", "v0.5")


def key_for_training(version: str) -> str:
    """Return the key of conv_templates that `--version` means. Raises UserError for an unknown name."""
    if version in TRAINED_AS_VICUNA_V1:
        return "vicuna_v1"
    find_template(version, flag="--version", also=TRAINED_AS_VICUNA_V1)
    return version


def warn_of_unknown_template(config: object, taken: str) -> None:
    """Log a warning when a checkpoint's config names a template that is unknown here; `taken` is used."""
    written = _read(config, "conv_template")
    if written is None or (isinstance(written, str) and written in conv_templates):
        return
    logger.warning(
        "the checkpoint's config.conv_template is %r, which is no template here; using %s "
        "(the known ones are %s; others are made known by llava.conversation.register_template)",
        written,
        taken,
        ", ".join(sorted(conv_templates)),
    )


def _read(config: object | None, key: str) -> Any:
    """Return a field of a config object or of its dict; None where it is missing."""
    return config.get(key) if isinstance(config, dict) else getattr(config, key, None)


def _registered() -> list[Template]:
    """List the templates in the order in which they are tried on a model's type and name."""
    return sorted({id(one): one for one in TEMPLATES.values()}.values(), key=lambda one: one.rank)


# LLMs that the reference trains by default with v0, whatever they are.
_OF_THE_REFERENCE = ("llama", "mistral", "mpt")


def version_for(path: str, config: Mapping[str, Any], *, has_chat_template: bool) -> tuple[str, str] | None:
    """Return the template that training starts with where no --version is given, and why; None: the default.

    config: of the LLM or LLaVA that it starts from. has_chat_template: whether its tokenizer has one.
    """
    family = str(config.get("model_type")).removeprefix("llava_")
    for architecture in config.get("architectures") or ():
        if architecture in _CLASSES:  # LLaVA-OneVision's folders are of type "llava"
            return _CLASSES[architecture], f"{path} is a {architecture}"
    if family in (*_OF_THE_REFERENCE, "llava"):
        return None
    for template in _registered():
        if f"llava_{family}" in template.model_types:
            return template.name, f"{path} is of type {family!r}"
    if not has_chat_template:
        return None
    return CHAT_TEMPLATE, f"{path} is of type {family!r}, which LLaVA has no template for"


# Model types of LLaVAs whose names tell which of several templates they speak.
_OF_MANY_TEMPLATES = ("llava", "llava_llama")
# LLaVA-OneVision wrote the type "llava"; there the class tells.
_CLASSES = {"LlavaQwenForCausalLM": "qwen_1_5", "LlavaGemmaForCausalLM": "gemma_instruct"}
_LLAMA_3_VOCABULARY = 128_256
# Yi-34B, the language model of LLaVA-1.6-34B, speaks ChatML and has this many tokens; Vicuna has half.
_YI_VOCABULARY = 64_000


def choose_template(model_name: str, config: object | None = None) -> tuple[str, str]:
    """Choose the template of a checkpoint: the key of conv_templates, and a sentence that says why.

    config: the model's config object or its dict. What the files say goes before what names say.
    """

    def read(key: str) -> Any:
        return _read(config, key)

    written, family, origin = read("conv_template"), read("model_type"), read("_name_or_path")
    note = ""
    if isinstance(written, str) and written in conv_templates:
        return written, f"config.conv_template is {written!r}"
    if written is not None:
        note = f" (config.conv_template is {written!r}, which is no template here)"
    for template in _registered():
        if family in template.model_types:
            return template.name, f"the model is of type {family!r}{note}"
    for architecture in read("architectures") or ():
        if architecture in _CLASSES:
            return _CLASSES[architecture], f"the model is a {architecture}{note}"
    if isinstance(family, str) and family.startswith("llava_") and family not in _OF_MANY_TEMPLATES:
        return CHAT_TEMPLATE, f"no template of LLaVA's is for models of type {family!r}{note}"
    for source, name in (("the model's name", model_name), ("config._name_or_path", origin)):
        for template in _registered() if isinstance(name, str) else ():
            for part in template.name_parts:
                if part in name.lower():
                    return template.name, f"{source}, {name!r}, contains {part!r}{note}"
    vocabulary, projector = read("vocab_size"), read("mm_projector_type")
    if vocabulary == _LLAMA_3_VOCABULARY:
        return "llava_llama_3", f"the names say nothing; {vocabulary} tokens are those of Llama 3{note}"
    if read("image_aspect_ratio") == "anyres" and (vocabulary or 0) >= _YI_VOCABULARY:
        return (
            "chatml_direct",
            f"the names say nothing; anyres tiling with {vocabulary} tokens is LLaVA-1.6-34B's{note}",
        )
    if isinstance(projector, str) and projector.startswith("mlp"):
        return (
            "llava_v1",
            f"the names say nothing; a projector of type {projector!r} came with version 1.5{note}",
        )
    if projector == "linear" or (projector is None and read("mm_vision_tower")):
        return "llava_v0", f"the names say nothing; a linear projector came with version 0{note}"
    return (
        "llava_v0",
        f"neither the name {model_name!r} nor the config tells the template; the oldest is taken{note}",
    )
