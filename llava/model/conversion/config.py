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
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.registry import TOWERS
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower

# model types of transformers: LLaVA 1.5, LLaVA 1.6 and LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision
FLAT, NEXT, NEXT_VIDEO, ONEVISION = "llava", "llava_next", "llava_next_video", "llava_onevision"
ARCHITECTURES = {
    FLAT: "LlavaForConditionalGeneration",
    NEXT: "LlavaNextForConditionalGeneration",
    NEXT_VIDEO: "LlavaNextVideoForConditionalGeneration",
    ONEVISION: "LlavaOnevisionForConditionalGeneration",
}
WITH_VIDEO = (NEXT_VIDEO, ONEVISION)
# types of language model and tower that a folder has which names none; "llama" and CLIP's elsewhere
_DEFAULT_PARTS = {ONEVISION: ("qwen2", SiglipVisionTower.config_class.model_type)}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # transformers' (height, width)
STRATEGIES = {"patch": "default", "cls_patch": "full"}

# beginnings of the names of LLaVA's own fields, which the text model's config has no use for
_MULTIMODAL = (
    "mm_", "image_", "use_mm_proj", "tune_mm", "freeze_mm", "unfreeze_mm", "tokenizer_", "conv_template",
    "s2", "vision_tower", "max_sequence_length", "pretrain_", "auto_map", "architectures", "_name_or_path",
    "frames_upbound", "video_", "add_time_instruction", "add_faster_video", "faster_token", "force_sample",
    "use_pos_skipping", "pos_skipping_range", "transformers_version", "quantization_config", "model_type",
    "dtype", "torch_dtype",
)  # fmt: skip


def hf_kind(config: Mapping[str, Any], path: str) -> str:
    """Tell which of transformers' classes holds this LLaVA: FLAT, NEXT, NEXT_VIDEO or ONEVISION.

    config: content of its config.json. Raises CheckpointError that says what those classes cannot express.
    """
    family = family_of(config, path)
    if not family.exports:
        raise CheckpointError(
            f"{path} is on {family.base_type.upper()}, which transformers' LLaVA classes cannot hold."
        )
    settings = MultimodalConfig.of(llava_config(config))
    kind = _kind_of(settings)
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
    elif settings.merge_type == "flat" and settings.tiles:
        reason = "it cuts images into tiles but merges them flat, and they merge tiles by spatial_unpad only"
    elif settings.merge_type != "flat" and not settings.tiles:
        reason = (
            f"mm_patch_merge_type is {settings.merge_type!r} with image_aspect_ratio "
            f"{settings.image_aspect_ratio!r}, and theirs goes with anyres"
        )
    elif settings.merge_type != "flat" and settings.select_feature == "cls_patch":
        reason = "it keeps the CLS feature of every tile (cls_patch), and they cannot place it in a grid"
    else:
        reason = _lost_of_videos(settings, kind)
    if reason:
        raise CheckpointError(f"{path} cannot be expressed in transformers' LLaVA classes: {reason}.")
    return kind


def _kind_of(settings: MultimodalConfig) -> str:
    if settings.merge_type == "flat":
        return FLAT
    if settings.tile_cap is not None:
        return ONEVISION
    return NEXT_VIDEO if settings.pools_first else NEXT


def _lost_of_videos(settings: MultimodalConfig, kind: str) -> str | None:
    """Say what of a model's videos its class in transformers does otherwise, None for nothing."""
    pooled = (settings.pool_mode, settings.pool_stride, settings.pools_first)
    position = settings.newline_position
    if kind == ONEVISION and (pooled != ("bilinear", 2, False) or position != "one_token"):
        return (
            f"its frames are pooled by {settings.pool_mode}, {settings.pool_stride} to one, with "
            f"mm_newline_position {position!r}, and those of LlavaOnevision by bilinear, 2 to one, with "
            "one_token"
        )
    if kind == NEXT_VIDEO and (settings.pool_mode == "bilinear" or position != "no_token"):
        return (
            f"its frames are pooled by {settings.pool_mode} before the projector, with mm_newline_position "
            f"{position!r}, and those of LlavaNextVideo by average or max, with no_token"
        )
    return None


def refuse_tower(tower: VisionTower, kind: str, path: str) -> None:
    """Raise CheckpointError for a vision tower with which a kind of conversion is not proven."""
    if kind not in tower.converts_to_hf:
        known = sorted({one.__name__ for one in TOWERS.values() if kind in one.converts_to_hf})
        raise CheckpointError(
            f"{path} has a vision tower of type {tower.config.model_type!r} ({type(tower).__name__}); for "
            f"{ARCHITECTURES[kind]} convert_hf knows {', '.join(known)}. Use this checkpoint with llava "
            "itself."
        )


def hf_config(
    config: Mapping[str, Any],
    tower: VisionTower,
    *,
    path: str,
    layers: int,
    vocabulary: int,
    tokens: PreTrainedTokenizerBase,
    dtype: str,
) -> dict[str, Any]:
    """Return the content of a llava-hf folder's config.json for a LLaVA.

    config: content of LLaVA's config.json. layers: those of the tower that are stored. vocabulary: rows
    of the embeddings, padding included. tokens: the exported tokenizer, which knows `<image>`, a padding
    token and, where the class takes videos, `<video>`. dtype: that of the language model.
    """
    kind = hf_kind(config, path)
    settings = MultimodalConfig.of(llava_config(config))
    text = text_config(config, vocabulary)
    eyes = tower.config
    vision = {name: getattr(eyes, name) for name in _VISION_FIELDS if hasattr(eyes, name)}
    vision["num_hidden_layers"] = layers
    if isinstance(tower, SiglipVisionTower):
        vision["vision_use_head"] = False  # its pooling head has no part in the features
    layer = settings.select_layer
    content = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "image_token_index": tokens.image_token_id,
        "image_token_id": tokens.image_token_id,
        "image_seq_length": tower.tokens_per_tile,
        "ignore_index": -100,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": layer if layer >= 0 else layer + eyes.num_hidden_layers - layers,
        "vision_feature_select_strategy": STRATEGIES[settings.select_feature]
        if tower.prefix_tokens
        else "full",
        "bos_token_id": text.get("bos_token_id"),
        "eos_token_id": text.get("eos_token_id"),
        "pad_token_id": tokens.pad_token_id,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "image_aspect_ratio": settings.image_aspect_ratio,  # not read by transformers, but by SGLang
        "text_config": text,
        "vision_config": {"model_type": eyes.model_type, **vision},
        "dtype": dtype,
        "torch_dtype": dtype,
        "transformers_version": transformers.__version__,
    }
    if kind != FLAT:
        content["image_grid_pinpoints"] = swapped(settings.image_grid_pinpoints, tower.tile_size)
        content["use_image_newline_parameter"] = True
    if kind in WITH_VIDEO:
        content["video_token_index"] = content["video_token_id"] = tokens.video_token_id
    if kind == ONEVISION:
        content["vision_aspect_ratio"] = settings.image_aspect_ratio
    if kind == NEXT_VIDEO:
        content["spatial_pool_mode"] = settings.pool_mode
        content["spatial_pool_stride"] = settings.pool_stride
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
    """Return the kind of a llava-hf folder's config, one of ARCHITECTURES.

    Raises CheckpointError when it is none, or LLaVA cannot express it.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES.values())
        raise CheckpointError(f"{path} has model_type {kind!r}; expected a folder of one of {names}.")
    reason = _unknown_part(config, kind) or _inexpressible(config, kind)
    if reason:
        raise CheckpointError(f"{path} cannot be expressed as a LLaVA checkpoint: {reason}.")
    return kind


def _unknown_part(config: Mapping[str, Any], kind: str) -> str | None:
    """Say which part of a llava-hf folder is of a type that LLaVA does not know, None for none."""
    llm, eyes = _DEFAULT_PARTS.get(kind, ("llama", CLIPVisionTower.config_class.model_type))
    text = (config.get("text_config") or {}).get("model_type", llm)
    vision = (config.get("vision_config") or {}).get("model_type", eyes)
    if not _exports(text):
        known = [family.base_type for family in FAMILIES if family.exports]
        return f"its language model is {text!r}; known: {', '.join(known)}"
    towers = sorted({one.config_class.model_type for one in TOWERS.values() if kind in one.converts_to_hf})
    return None if vision in towers else f"its vision tower is {vision!r}; known: {', '.join(towers)}"


def _inexpressible(config: Mapping[str, Any], kind: str) -> str | None:
    """Say what of a llava-hf folder LLaVA has no setting for, None for nothing."""
    if not isinstance(config.get("vision_feature_layer", -2), int):
        return f"it uses several layers of the tower ({config['vision_feature_layer']}); LLaVA uses one"
    if config.get("projector_hidden_act", "gelu") != "gelu":
        return f"the projector's activation is {config['projector_hidden_act']!r}; LLaVA's is gelu"
    if not config.get("multimodal_projector_bias", True):
        return "its projector has no bias; LLaVA's has"
    both = _built(config, kind)
    has_prefix, strategy = _has_prefix(both.vision_config.model_type), both.vision_feature_select_strategy
    if kind != FLAT and has_prefix and strategy != STRATEGIES["patch"]:
        return "it keeps the CLS feature of every tile, which cannot be placed in a grid"
    if not has_prefix and strategy != "full":
        return "it drops the first patch of every tile, which LLaVA keeps"
    if kind == NEXT_VIDEO and both.spatial_pool_mode not in ("average", "max"):
        return f"its frames are pooled by {both.spatial_pool_mode!r}; known: average, max"
    return None


def _has_prefix(vision_type: str) -> bool:
    """Tell whether a tower puts a token in front of its patches."""
    return vision_type != SiglipVisionTower.config_class.model_type


def _built(config: Mapping[str, Any], kind: str) -> Any:
    """Build the config object, because hub folders leave out what is the default of transformers."""
    names = (
        *("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio"),
        *("image_grid_pinpoints", "spatial_pool_mode", "spatial_pool_stride"),
    )
    given = {name: config[name] for name in names if config.get(name) is not None}
    return CONFIG_MAPPING[kind](**_sub_configs(config), **given)


def _exports(text_type: object) -> bool:
    """Tell whether LLaVA stands on an LLM, and transformers' LLaVA classes hold it."""
    try:
        return family_of({"model_type": text_type}).exports
    except CheckpointError:
        return False


def first_media_token(config: Mapping[str, Any]) -> int:
    """Return the id of the first token that stands for an image or a video in a llava-hf folder."""
    kind = str(config["model_type"])
    if kind not in WITH_VIDEO:
        return int(config.get("image_token_index", 32000))
    ids = ("image_token_index", "video_token_index")
    return min(int(config.get(name, getattr(CONFIG_MAPPING[kind](), name))) for name in ids)


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
    both = _built(config, kind)
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
        "mm_vision_select_layer": both.vision_feature_layer,
        "mm_vision_select_feature": "patch"
        if not _has_prefix(both.vision_config.model_type)
        else strategies[both.vision_feature_select_strategy],
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
    if kind != FLAT:
        fields["image_grid_pinpoints"] = swapped(both.image_grid_pinpoints)
    if kind == ONEVISION:
        fields.update(
            image_aspect_ratio=both.vision_aspect_ratio, mm_spatial_pool_mode="bilinear",
            mm_spatial_pool_stride=2, mm_newline_position="one_token",
        )  # fmt: skip
    if kind == NEXT_VIDEO:
        fields.update(
            mm_resampler_type="spatial_pool", mm_spatial_pool_mode=both.spatial_pool_mode,
            mm_spatial_pool_stride=both.spatial_pool_stride, mm_newline_position="no_token",
        )  # fmt: skip
    return fields
