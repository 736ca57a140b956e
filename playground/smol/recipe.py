"""How large the run is, and the flags of both stages: llava/train/train_mem.py's, those of scripts/v1_5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from playground import launch
from playground.smol.data import Sizes

# Runs the program that follows with EfficientNet-Lite known as a tower.
PROGRAM = ("-m", "playground.smol.program")
SHARED = {
    **launch.SHARED,
    "vision_tower": "{work}/models/tower",
    "model_name_or_path": "{work}/models/llm",
    "image_folder": "{work}/data/images",
    "mm_projector_type": "avg_pool2x_mlp2x_gelu",  # 4 x 4 features of an image become 4 tokens
    "mm_vision_resolution": "128",
    "save_strategy": "steps",
    "num_train_epochs": "1",
    "optim": "adamw_torch_fused",
}
STAGES: dict[str, dict[str, str]] = {
    "pretrain": {
        "version": "plain",
        "data_path": "{work}/data/pretrain.json",
        "tune_mm_mlp_adapter": "True",
        "output_dir": "{work}/llava-smol-pretrain",
        "per_device_train_batch_size": "8",
        "learning_rate": "1e-3",
        "save_steps": "100",
    },
    "finetune": {
        "version": "chat_template",  # SmolLM2's own
        "data_path": "{work}/data/finetune.json",
        "pretrain_mm_mlp_adapter": "{work}/llava-smol-pretrain/mm_projector.bin",
        "image_aspect_ratio": "pad",
        "group_by_modality_length": "True",
        "output_dir": "{work}/llava-smol",
        "per_device_train_batch_size": "4",
        "learning_rate": "1e-4",
        "warmup_ratio": "0.1",
        "save_steps": "25",
        "logging_steps": "5",
    },
}


@dataclass(frozen=True)
class Recipe:
    """How much data is used, and flags that differ from STAGES. has_bar: whether the result is judged."""

    sizes: Sizes = Sizes()
    changed: Mapping[str, str] = field(default_factory=dict)
    has_bar: bool = True


RECIPES = {
    "full": Recipe(),
    "short": Recipe(
        Sizes(caption_images=16, dialog_images=4, test_images=1),
        {"max_steps": "2", "per_device_train_batch_size": "2", "save_strategy": "no", "logging_steps": "1"},
        has_bar=False,
    ),
}


def command(stage: str, work: Path, device: str, changed: Mapping[str, str]) -> list[str]:
    """Build the command line of a stage; `changed` flags win over its own."""
    flags = {**SHARED, **STAGES[stage], **changed}
    return launch.words_of([*PROGRAM, "llava/train/train_mem.py"], flags, work, device)
