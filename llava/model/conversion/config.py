"""Configs of LLaVA and of transformers' LLaVA classes made from each other; what cannot be expressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.mm_utils import parse_grid_pinpoints
from llava.model.checkpoints.files import CheckpointError
from llava.model.language_model.registry import FAMILIES, family_of, llava_config
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.registry import TOWERS

FLAT, NEXT = "llava", "llava_next"  # model types of transformers: LLaVA 1.5 and LLaVA 1.6
ARCHITECTURES = {FLAT: "LlavaForConditionalGeneration", NEXT: "LlavaNextForConditionalGeneration"}
STRATEGIES = {"patch": "default", "cls_patch": "full"}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # transformers' (height, width)

# beginnings of the names of LLaVA's own fields, which the text model's config has no use for
_MULTIMODAL = (
    "mm_", "image_", "use_mm_proj", "tune_mm", "freeze_mm", "unfreeze_mm", "tokenizer_", "conv_template",
    "s2", "vision_tower", "max_sequence_length", "pretrain_", "auto_map", "architectures", "_name_or_path",
    "transformers_version", "quantization_config", "model_type", "dtype", "torch_dtype",
)  # fmt: skip


def hf_kind(config: Mapping[str, Any], path: str) -> str:
    """Tell which of transformers' classes holds this LLaVA: FLAT or NEXT.

    config: content of its config.json. Raises CheckpointError that says what those classes cannot express.
    """
    family = family_of(config, path)
    if not family.exports:
        raise CheckpointError(
            f"{path} is on {family.base_type.upper()}, which transformers' LLaVA classes cannot hold."
        )
    settings = MultimodalConfig.of(llava_config(config))
    tiles = settings.image_aspect_ratio.startswith("anyres")
    reason = None
    if settings.projector_type != "mlp2x_gelu":
        reason = (
            f"its projector is {settings.projector_type!r}, and theirs is always two linear layers with GELU "
            f"between them (mlp2x_gelu)"
        )
    elif config.get("s2"):
        reason = "its vision tower looks at several scales (s2), and theirs at one"
    elif settings.select_feature not in STRATEGIES:
        reason = f"mm_vision_select_feature is {settings.select_feature!r}, and they know patch and cls_patch"
    elif settings.merge_type not in ("flat", "spatial_unpad"):
        reason = f"mm_patch_merge_type is {settings.merge_type!r}, and they know flat and spatial_unpad"
    elif settings.merge_type == "flat" and tiles:
        reason = "it cuts images into tiles but merges them flat, and they merge tiles by spatial_unpad only"
    elif settings.merge_type != "flat" and settings.image_aspect_ratio != "anyres":
        reason = (
            f"mm_patch_merge_type is {settings.merge_type!r} with image_aspect_ratio "
            f"{settings.image_aspect_ratio!r}, and theirs goes with anyres"
        )
    elif settings.merge_type != "flat" and settings.select_feature == "cls_patch":
        reason = "it keeps the CLS feature of every tile (cls_patch), and they cannot place it in a grid"
    if reason:
        raise CheckpointError(f"{path} cannot be expressed in transformers' LLaVA classes: {reason}.")
    return FLAT if settings.merge_type == "flat" else NEXT


def refuse_tower(tower: VisionTower, path: str) -> None:
    """Raise CheckpointError for a vision tower with which the conversion is not proven."""
    if not tower.converts_to_hf:
        known = sorted({one.__name__ for one in TOWERS.values() if one.converts_to_hf})
        raise CheckpointError(
            f"{path} has a vision tower of type {tower.config.model_type!r} ({type(tower).__name__}); "
            f"convert_hf knows {', '.join(known)}. Use this checkpoint with llava itself."
        )


def hf_config(
    config: Mapping[str, Any],
    tower: PreTrainedConfig,
    *,
    path: str,
    vocabulary: int,
    tokens: PreTrainedTokenizerBase,
    dtype: str,
) -> dict[str, Any]:
    """Return the content of a llava-hf folder's config.json for a LLaVA.

    config: content of LLaVA's config.json. vocabulary: rows of the embeddings, padding included. tokens: the
    exported tokenizer, which knows `<image>` and a padding token. dtype: that of the language model.
    """
    kind = hf_kind(config, path)
    settings = MultimodalConfig.of(llava_config(config))
    text = text_config(config, vocabulary)
    patches = (tower.image_size // tower.patch_size) ** 2
    vision = {name: getattr(tower, name) for name in _VISION_FIELDS}
    content = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "image_token_index": tokens.image_token_id,
        "image_token_id": tokens.image_token_id,
        "image_seq_length": patches + (settings.select_feature == "cls_patch"),
        "ignore_index": -100,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": settings.select_layer,
        "vision_feature_select_strategy": STRATEGIES[settings.select_feature],
        "bos_token_id": text.get("bos_token_id"),
        "eos_token_id": text.get("eos_token_id"),
        "pad_token_id": tokens.pad_token_id,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "image_aspect_ratio": settings.image_aspect_ratio,  # not read by transformers, but by SGLang
        "text_config": text,
        "vision_config": {"model_type": tower.model_type, **vision},
        "dtype": dtype,
        "torch_dtype": dtype,
        "transformers_version": transformers.__version__,
    }
    if kind == NEXT:
        content["image_grid_pinpoints"] = swapped(settings.image_grid_pinpoints, tower.image_size)
        content["use_image_newline_parameter"] = True
    return content


_VISION_FIELDS = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip


def text_config(config: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return a LLaVA's config without its multimodal fields: the config of the language model.

    It names no dtype, because transformers before 4.48 takes one from here over the one asked for.
    """
    fields = llava_config(config).to_diff_dict()  # with the names of transformers 4 and 5
    kept = {name: value for name, value in fields.items() if not name.startswith(_MULTIMODAL)}
    family = family_of(config)
    return {
        "architectures": [family.llm_class.__name__ if family.llm_class else ""],
        **kept,
        "model_type": family.base_type,
        "vocab_size": vocabulary,
    }


def swapped(pinpoints: str | Sequence[Sequence[int]], tile_size: int | None = None) -> list[list[int]]:
    """Turn (width, height) pairs into (height, width) or back; the order, which breaks ties, stays.

    tile_size: pixels of a tile, for shapes that are given in tiles.
    """
    return [[second, first] for first, second in parse_grid_pinpoints(pinpoints, tile_size)]


def check_hf(config: Mapping[str, Any], path: str) -> str:
    """Return the kind of a llava-hf folder's config, FLAT or NEXT.

    Raises CheckpointError when it is none, or LLaVA cannot express it.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        names = " and ".join(ARCHITECTURES.values())
        raise CheckpointError(f"{path} has model_type {kind!r}; expected a folder of {names}.")
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    known = [family.base_type for family in FAMILIES if family.exports]
    towers = sorted({one.config_class.model_type for one in TOWERS.values() if one.converts_to_hf})
    reason = None
    if not _exports(text.get("model_type", "llama")):
        reason = f"its language model is {text.get('model_type')!r}; known: {', '.join(known)}"
    elif vision.get("model_type", towers[0]) not in towers:
        reason = f"its vision tower is {vision.get('model_type')!r}; known: {', '.join(towers)}"
    elif not isinstance(config.get("vision_feature_layer", -2), int):
        reason = f"it uses several layers of the tower ({config['vision_feature_layer']}); LLaVA uses one"
    elif config.get("projector_hidden_act", "gelu") != "gelu":
        reason = f"the projector's activation is {config['projector_hidden_act']!r}; LLaVA's is gelu"
    elif not config.get("multimodal_projector_bias", True):
        reason = "its projector has no bias; LLaVA's has"
    elif kind == NEXT and config.get("vision_feature_select_strategy", "default") != "default":
        reason = "it keeps the CLS feature of every tile, which cannot be placed in a grid"
    if reason:
        raise CheckpointError(f"{path} cannot be expressed as a LLaVA checkpoint: {reason}.")
    return kind


def _exports(text_type: object) -> bool:
    """Tell whether LLaVA stands on an LLM, and transformers' LLaVA classes hold it."""
    try:
        return family_of({"model_type": text_type}).exports
    except CheckpointError:
        return False


def vision_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the tower's config of a llava-hf folder; absent fields are those of CLIP ViT-L/14 at 336."""
    return CONFIG_MAPPING[str(config["model_type"])](**_sub_configs(config)).vision_config


def _sub_configs(config: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("text_config", "vision_config")
    return {name: dict(config[name]) for name in wanted if config.get(name)}


def llava_fields(config: Mapping[str, Any], *, path: str, tower: str, aspect: str) -> dict[str, Any]:
    """Return the content of LLaVA's config.json for a llava-hf folder, but vocab_size.

    tower: mm_vision_tower. aspect: image_aspect_ratio of a FLAT model; a NEXT model's is anyres.
    """
    kind = check_hf(config, path)
    # builds it once, because hub folders leave out what is the default of transformers
    both = CONFIG_MAPPING[kind](**_sub_configs(config))
    family = family_of({"model_type": both.text_config.model_type})
    text = both.text_config.to_dict()
    dropped = ("architectures", "_name_or_path", "transformers_version", "model_type", "dtype", "torch_dtype")
    strategies = {value: name for name, value in STRATEGIES.items()}
    fields = {
        **{name: value for name, value in text.items() if name not in dropped},
        "architectures": [family.model_class.__name__],
        "model_type": family.config_class.model_type,
        "mm_vision_tower": tower,
        "mm_hidden_size": both.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.get("vision_feature_layer", -2),
        "mm_vision_select_feature": strategies[config.get("vision_feature_select_strategy", "default")],
        "mm_patch_merge_type": "flat" if kind == FLAT else "spatial_unpad",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
        "image_aspect_ratio": aspect if kind == FLAT else "anyres",
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": both.text_config.max_position_embeddings,
    }
    if kind == NEXT:
        fields["image_grid_pinpoints"] = swapped(config.get("image_grid_pinpoints") or PINPOINTS)
    return fields
