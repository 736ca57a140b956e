"""Stage 1, and stage 2 whole or with LoRA: llava/train/train_mem.py, scripts/v1_5's flags, small sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from playground import launch
from playground.launch import ROOT as ROOT

SHARED = {
    **launch.SHARED,
    "vision_tower": "{work}/models/tower",
    "model_name_or_path": "{work}/models/llm",
    "image_folder": "{work}/data/images",
}
STAGES: dict[str, dict[str, str]] = {
    "pretrain": {
        "version": "plain",
        "data_path": "{work}/data/pretrain.json",
        "tune_mm_mlp_adapter": "True",
        "output_dir": "{work}/llava-digits-pretrain",
        "num_train_epochs": "1",
        "per_device_train_batch_size": "32",
        "learning_rate": "1e-3",
    },
    "finetune": {
        "version": "v1",
        "data_path": "{work}/data/finetune.json",
        "pretrain_mm_mlp_adapter": "{work}/llava-digits-pretrain/mm_projector.bin",
        "image_aspect_ratio": "pad",
        "group_by_modality_length": "True",
        "output_dir": "{work}/llava-digits",
        "num_train_epochs": "1",
        "per_device_train_batch_size": "16",
        "learning_rate": "1e-3",
    },
}
# Data and projector are those of "finetune". As in scripts/v1_5/finetune_lora.sh, adapters on linear
# layers of the LLM train, and the projector. playground/digits/choose_lora.py chose rank and rates.
STAGES["lora"] = {
    **STAGES["finetune"],
    "output_dir": "{work}/llava-digits-lora",
    "lora_enable": "True",
    "lora_r": "32",
    "lora_alpha": "64",
    "learning_rate": "2e-3",
    "mm_projector_lr": "1e-3",
}


def command(
    stage: str, work: Path, device: str, changed: Mapping[str, str | None] | None = None
) -> list[str]:
    """Build the command line of a stage; `changed` flags win over its own, None omits one."""
    flags = {**SHARED, **STAGES[stage], **(changed or {})}
    return launch.words_of(["llava/train/train_mem.py"], flags, work, device)


def train(stage: str, work: Path, device: str, changed: Mapping[str, str | None] | None = None) -> None:
    """Run a stage, see launch. Raises CalledProcessError when it fails."""
    launch.launch(command(stage, work, device, changed), stage, work, device)
