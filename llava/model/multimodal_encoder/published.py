"""Configs of published towers, for checkpoints that store such a tower where the hub cannot be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.model.checkpoints.files import CheckpointError, find_file, read_config

_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_VIT_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

# hub name -> content of its config.json, as far as it concerns the vision model
PUBLISHED: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": _SO400M,
    "openai/clip-vit-large-patch14-336": _VIT_L,
    "openai/clip-vit-large-patch14": {**_VIT_L, "image_size": 224},
}
# hub name -> settings of its image processor, beside the size, where its class has other defaults
PROCESSORS: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


def tower_config(name: str) -> dict[str, Any]:
    """Read the config.json of a tower; for a published tower that cannot be had, what is known of it.

    Raises CheckpointError.
    """
    try:
        return read_config(name)
    except CheckpointError:
        if name in PUBLISHED and not Path(name).exists():
            return dict(PUBLISHED[name])
        raise


def processor_file(name: str, file: str) -> Path | None:
    """Return the file of a tower's image processor; None where there is none, or for a published tower."""
    try:
        return find_file(name, file)
    except CheckpointError:
        if name in PUBLISHED:
            return None
        raise
