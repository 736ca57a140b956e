"""Tiny folders in the layouts that newer LLaVAs were published in: fields, names, parts of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import chat_tokenizer
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from llava.model.checkpoints.files import save_tensors
from llava.model.language_model.probing import small_model
from llava.model.language_model.registry import family_of, llava_config
from llava.model.multimodal_encoder import published

EDGE = 28  # pixels of a tile
WIDTH = 16  # of the tower's features
SIGLIP, CLIP = "google/siglip-so400m-patch14-384", "openai/clip-vit-large-patch14-336"
PARTS = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
RANGE = "(1x1),...,(6x6)"
GRIDS = [[EDGE * across, EDGE * down] for across in range(1, 7) for down in range(1, 7)]
NEXT_GRIDS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
_TOWER = "model.vision_tower.vision_tower.vision_model."
_CLASSES = {SIGLIP: (SiglipVisionConfig, SiglipVisionModel), CLIP: (CLIPVisionConfig, CLIPVisionModel)}
_SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2, "image_size": EDGE,
    "num_hidden_layers": 3, "patch_size": 7,
}  # fmt: skip

# fields that every config of LLaVA-NeXT's code has
_COMMON = {
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "mm_hidden_size": WIDTH,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower_lr": 2e-06,
    "tokenizer_model_max_length": 32768,
    "tokenizer_padding_side": "right",
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
    "use_cache": True,
    "use_mm_proj": True,
}
_OF_SIGLIP = {
    **_COMMON,
    "mm_tunable_parts": PARTS,
    "mm_vision_tower": SIGLIP,
    "vision_tower_pretrained": None,
}
_ONEVISION = {
    **_OF_SIGLIP,
    "image_aspect_ratio": "anyres_max_9",
    "mm_newline_position": "one_token",
    "mm_spatial_pool_mode": "bilinear",
    "pos_skipping_range": 4096,
    "use_pos_skipping": False,
}
_NEXT = {
    **_COMMON,
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": NEXT_GRIDS,
    "mm_vision_tower": CLIP,
}


@dataclass(frozen=True)
class Layout:
    """A published layout. short: its tower is stored without the last layer and what stands behind it."""

    model_type: str
    architecture: str
    llm: str  # model type of the LLM
    fields: dict[str, Any]
    tokenizer: str = "chatml"
    template: str = "qwen_1_5"
    short: bool = True
    llm_fields: dict[str, Any] = field(default_factory=dict)


_QWEN = ("llava_qwen", "LlavaQwenForCausalLM", "qwen2")
LAYOUTS = {
    "onevision-7b": Layout(
        "llava", "LlavaQwenForCausalLM", "qwen2", {**_ONEVISION, "image_grid_pinpoints": GRIDS}
    ),
    "onevision-0.5b": Layout(
        *_QWEN, {**_ONEVISION, "image_grid_pinpoints": RANGE}, llm_fields={"tie_word_embeddings": True}
    ),
    "next-llama3": Layout(
        "llava_llama", "LlavaLlamaForCausalLM", "llama", {**_NEXT, "unfreeze_mm_vision_tower": True},
        tokenizer="llama_3", template="llava_llama_3", short=False,
    ),
    "next-qwen": Layout(*_QWEN, {**_NEXT, "mm_tunable_parts": PARTS}, short=False),
    "interleave": Layout(
        *_QWEN, {**_OF_SIGLIP, "image_aspect_ratio": "anyres", "image_grid_pinpoints": NEXT_GRIDS}
    ),
    "video-7b": Layout(
        *_QWEN,
        {
            **_ONEVISION, "image_grid_pinpoints": RANGE, "mm_newline_position": "grid",
            "mm_spatial_pool_stride": 2, "add_faster_video": False, "add_time_instruction": True,
            "force_sample": True, "frames_upbound": 64, "video_fps": 1, "faster_token_stride": 10,
        },
    ),
    "next-video-7b": Layout(
        "llava_llama", "LlavaLlamaForCausalLM", "llama",
        {
            **_NEXT, "mm_resampler_type": "spatial_pool", "mm_spatial_pool_mode": "average",
            "mm_spatial_pool_stride": 2, "mm_newline_position": "no_token", "mm_tunable_parts": PARTS,
        },
        tokenizer="llama_2", template="llava_v1", short=False,
    ),
}  # fmt: skip
VIDEOS = ("onevision-7b", "onevision-0.5b", "interleave", "video-7b", "next-video-7b")


def _noise(model: torch.nn.Module, scale: float) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * scale)


@contextmanager
def known_towers() -> Iterator[None]:
    """Let the published names stand for tiny towers, of which the configs alone are known."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (config_class, _) in _CLASSES.items():
            content = {**published.PUBLISHED[name], **_SIZES, "model_type": config_class.model_type}
            patch.setitem(published.PUBLISHED, name, content)
        yield


def write_layout(name: str, folder: Path) -> Path:
    """Write the folder of a layout, in float32 with random weights; for use under `known_towers`."""
    layout = LAYOUTS[name]
    torch.manual_seed(0)
    tokenizer = chat_tokenizer(layout.tokenizer)
    rows = len(tokenizer) + 20  # as Qwen, whose embeddings have more rows than its tokenizer has tokens
    sizes = {
        "vocab_size": rows, "max_position_embeddings": 32768, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
        **layout.llm_fields,
    }  # fmt: skip
    bare = small_model(layout.llm, **sizes)
    content = {
        **bare.config.to_diff_dict(), **layout.fields, "model_type": layout.model_type,
        "architectures": [layout.architecture],
    }  # fmt: skip
    model = family_of(content).model_class(llava_config(content))
    parts = torch.nn.ModuleList([model.get_model().mm_projector])
    _noise(parts, 0.1)
    weights = {key: value for key, value in model.state_dict().items() if "vision_tower" not in key}
    weights.update(bare.state_dict())
    config_class, tower_class = _CLASSES[layout.fields["mm_vision_tower"]]
    tower = tower_class(config_class(**_SIZES))
    _noise(tower, 0.1)
    behind = (f"encoder.layers.{_SIZES['num_hidden_layers'] - 1}.", "head.") if layout.short else ()
    for key, value in tower.state_dict().items():
        if not behind or not key.startswith(behind):
            weights[_TOWER + key] = value
    if layout.llm_fields.get("tie_word_embeddings"):
        del weights["lm_head.weight"]
    folder.mkdir(parents=True)
    save_tensors(
        {key: value.contiguous().clone() for key, value in weights.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(content))
    tokenizer.save_pretrained(folder)
    return folder
