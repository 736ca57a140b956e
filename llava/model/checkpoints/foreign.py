"""Recognises checkpoints of other projects and folders that hold no model, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# `model_type` of models that are a vision tower, or hold one beside a text encoder
_TOWER_TYPES = ("clip", "siglip", "dinov2", "dinov3", "vit", "eva", "internvit", "convnext")
_TOWER_ARCHITECTURES = ("CLIPModel", "CLIPVisionModel", "SiglipModel", "SiglipVisionModel")
# keys that only configs of vision-language models have
_VISION_KEYS = ("vision_config", "visual", "mm_vision_config")
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "vocab.json")

# (pattern of a file's name, what a folder without weights for transformers is then)
_OTHER_FORMATS = (
    ("model_index.json", "is a diffusers pipeline, which makes images; it is no language model"),
    ("*.gguf", "holds GGUF files of llama.cpp; run them there, or get the folder they were made from"),
    (
        "consolidated.*.pth",
        "is in Meta's own format; convert it with transformers' convert_llama_weights_to_hf.py, "
        "or get the model in transformers' format",
    ),
    ("tf_model.h5", "holds TensorFlow weights only; get the model's safetensors or .bin files"),
    ("flax_model.msgpack", "holds Flax weights only; get the model's safetensors or .bin files"),
    ("*.onnx", "holds ONNX files only; get the model's safetensors or .bin files"),
    (
        "zero_to_fp32.py",
        "holds the parts of a DeepSpeed run; join them with: python zero_to_fp32.py . . (in that folder)",
    ),
    ("*.ckpt", "holds a .ckpt file of another project; it cannot be loaded"),
)


def foreign_file(path: Path) -> str:
    """Say what a file is that was given in place of a folder."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"GGUF":
        return (
            f"{path} is a GGUF file of llama.cpp; run it there, or give the folder of the model it was made "
            f"from."
        )
    return f"{path} is a file; expected the folder of a checkpoint (this file lies in {path.parent})."


def foreign_config(config: Mapping[str, Any], path: str) -> str | None:
    """Say what a `config.json` of another project belongs to; None if it may be a LLaVA or a text model."""
    architectures = [str(name) for name in config.get("architectures") or []]
    model_type, name = str(config.get("model_type")), next(iter(architectures), "")
    if "_diffusers_version" in config:
        return f"{path} is a part of a diffusers pipeline ({config.get('_class_name')}), no language model."
    if model_type in ("llava", "llava_next") and (name.endswith("Generation") or "text_config" in config):
        return (
            f"{path} is in the format of transformers (llava-hf, {name or model_type}), not in LLaVA's own; "
            f"convert it with: python -m llava.model.convert_hf from-hf {path} NEW_FOLDER"
        )
    if model_type.removesuffix("_model").removesuffix("_vision") in _TOWER_TYPES or (
        name in _TOWER_ARCHITECTURES
    ):
        return (
            f"{path} is an image encoder (model_type {model_type!r}), not a language model; a LLaVA names it "
            f"as mm_vision_tower, training as --vision_tower."
        )
    if config.get("mm_vision_tower") or any(one.startswith("Llava") for one in architectures):
        if name.endswith("ForConditionalGeneration"):
            return f"{path} is a model of transformers ({name}), not in LLaVA's format; load it with {name}."
        return None
    if name.endswith("ForConditionalGeneration") or any(config.get(key) for key in _VISION_KEYS):
        program = "that project's code" if "auto_map" in config else f"transformers' {name or 'class for it'}"
        kind = "vision-language model" if any(config.get(key) for key in _VISION_KEYS) else "model"
        return (
            f"{path} is a {kind} of another project ({name or model_type}, model_type {model_type!r}), not "
            f"LLaVA; load it with {program}."
        )
    return None if "auto_map" in config or _is_text_type(model_type) else _unknown_type(model_type, path)


def _is_text_type(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING


def _unknown_type(model_type: str, path: str) -> str:
    from transformers import __version__

    return (
        f"{path} is no LLaVA, and its model_type {model_type!r} is no language model that transformers "
        f"{__version__} knows."
    )


def foreign_folder(path: Path) -> str | None:
    """Say what a local folder without weights for transformers holds; None if nothing is recognised."""
    names = sorted(one.name for one in path.iterdir() if not one.name.startswith("."))
    if not names:
        return f"{path} is empty, it holds no model"
    for pattern, what in _OTHER_FORMATS:
        if _matches(path, pattern):
            return f"{path} {what}"
    inner = [one.parent.name for one in path.glob("*/config.json")]
    inner += [one.parent.name for one in path.glob("*/adapter_config.json")]
    if inner and "config.json" not in names:
        few = ", ".join(sorted(set(inner), key=_by_number)[-4:])
        return f"{path} holds no model itself; give one of the folders in it: {few}"
    if "config.json" not in names and any(name in names for name in _TOKENIZER_FILES):
        return f"{path} holds only a tokenizer, no model"
    return None


def _matches(path: Path, pattern: str) -> bool:
    return next(iter(path.glob(pattern)), None) is not None


def _by_number(name: str) -> tuple[int, str]:
    """Order checkpoint-500 before checkpoint-1000."""
    digits = "".join(_digits(name))
    return int(digits or 0), name


def _digits(name: str) -> Iterable[str]:
    return (character for character in name if character.isdigit())
