"""Whether an exported folder has everything that transformers, vLLM and SGLang read when they serve it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.conversion.config import ARCHITECTURES, FLAT, ONEVISION

_LAYERS = {"text_config": "language_model.model.layers.", "vision_config": ".encoder.layers."}
_TENSORS = ("language_model.model.embed_tokens.weight", "multi_modal_projector.linear_1.weight")


def missing_for_serving(folder: str | Path) -> list[str]:
    """Return what a server would miss in a llava-hf folder, a sentence each; an empty list: it is complete.

    Reads JSON files and the heads of the weight files, no weights.
    """
    folder = Path(folder)
    checks = (_config, _tokenizer, _processor, _weights)
    return [one for check in checks for one in _told(check, folder)]


def _told(check: Callable[[Path], Iterator[str]], folder: Path) -> Iterator[str]:
    """Yield what a check finds; a file that cannot be read is one of them."""
    try:
        yield from check(folder)
    except (CheckpointError, OSError, ValueError) as error:
        yield str(error)


def _json(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of a JSON file. Raises ValueError for one that is missing or no object."""
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{name} is missing")
    return files.read_json(file)


def _lacking(content: dict[str, Any], name: str, *keys: str) -> Iterator[str]:
    for key in keys:
        if content.get(key) is None:
            yield f"{name} has no {key}"


def _config(folder: Path) -> Iterator[str]:
    config = _json(folder, files.CONFIG_FILE)
    known = ARCHITECTURES.get(config.get("model_type", ""))
    if known is None or config.get("architectures") != [known]:
        yield (
            f"{files.CONFIG_FILE} has the model_type {config.get('model_type')!r} and the architectures "
            f"{config.get('architectures')!r}; expected one of {', '.join(sorted(ARCHITECTURES.values()))}"
        )
    keys = ("image_token_index", "vision_feature_layer", "vision_feature_select_strategy")
    yield from _lacking(
        config, files.CONFIG_FILE, "text_config", "vision_config", "projector_hidden_act", *keys
    )
    if known and config["model_type"] != FLAT:
        yield from _lacking(config, files.CONFIG_FILE, "image_grid_pinpoints")
    if not (folder / "generation_config.json").is_file():
        yield "generation_config.json is missing: answers would not end where the model ends them"


def _tokenizer(folder: Path) -> Iterator[str]:
    settings = _json(folder, "tokenizer_config.json")
    vocabulary = _json(folder, "tokenizer.json")
    ids = {one["content"]: one["id"] for one in vocabulary.get("added_tokens", ())}
    wanted = _json(folder, files.CONFIG_FILE).get("image_token_index")
    if ids.get(DEFAULT_IMAGE_TOKEN) != wanted:
        yield (
            f"tokenizer.json has {DEFAULT_IMAGE_TOKEN} as {ids.get(DEFAULT_IMAGE_TOKEN)}, but "
            f"{files.CONFIG_FILE} has image_token_index {wanted}"
        )
    templates = [folder / "chat_template.jinja", folder / "chat_template.json"]
    if not settings.get("chat_template") and not any(one.is_file() for one in templates):
        yield "there is no chat template, which /v1/chat/completions needs"


def _processor(folder: Path) -> Iterator[str]:
    yield from _lacking(
        _json(folder, "preprocessor_config.json"), "preprocessor_config.json", "image_processor_type"
    )
    kind = _json(folder, files.CONFIG_FILE).get("model_type")
    length = "num_image_tokens" if kind == ONEVISION else "patch_size"
    keys = ("processor_class", length, "vision_feature_select_strategy")
    yield from _lacking(_json(folder, "processor_config.json"), "processor_config.json", *keys)


def _weights(folder: Path) -> Iterator[str]:
    config = _json(folder, files.CONFIG_FILE)
    if not any(folder.glob("*.safetensors")):
        yield "there are no *.safetensors files"
        return
    names = set(files.load_weights(folder, shapes_only=True))  # raises for a file that is cut or missing
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = set(json.loads(index.read_text())["weight_map"])
        if lost := sorted(listed - names):
            yield f"the weight files lack {len(lost)} tensors of the index, among them {lost[0]}"
    head = () if config.get("tie_word_embeddings") else ("language_model.lm_head.weight",)
    for name in (*_TENSORS, *head):
        if name not in names:
            yield f"the weights have no {name}"
    for part, prefix in _LAYERS.items():
        for number in range((config.get(part) or {}).get("num_hidden_layers") or 0):
            if not any(f"{prefix}{number}." in name for name in names):
                yield f"the weights have no layer {number} of {part}"
