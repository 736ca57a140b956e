"""Stage 1, and stage 2 whole or with LoRA: llava/train/train_mem.py, scripts/v1_5's flags, small sizes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The flags of scripts/v1_5/pretrain.sh and finetune.sh that both stages share.
SHARED = {
    "vision_tower": "{work}/models/tower",
    "model_name_or_path": "{work}/models/llm",
    "image_folder": "{work}/data/images",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": "-2",
    "mm_use_im_start_end": "False",
    "mm_use_im_patch_token": "False",
    "per_device_eval_batch_size": "4",
    "gradient_accumulation_steps": "1",
    "evaluation_strategy": "no",
    "save_strategy": "no",
    "save_total_limit": "1",
    "weight_decay": "0.",
    "warmup_ratio": "0.03",
    "lr_scheduler_type": "cosine",
    "logging_steps": "10",
    "model_max_length": "2048",
    "gradient_checkpointing": "False",
    "dataloader_num_workers": "1",
    "lazy_preprocess": "True",
    "report_to": "none",
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
    on_gpu = device.startswith("cuda")
    own = {**SHARED, **STAGES[stage], "bf16": str(on_gpu), "tf32": str(on_gpu)}
    flags: dict[str, str | None] = {**own, **(changed or {})}
    if not on_gpu:
        flags["use_cpu"] = "True"
    words = [sys.executable, "llava/train/train_mem.py"]
    for name, value in flags.items():
        words += [] if value is None else [f"--{name}", value.format(work=work)]
    return words


def train(stage: str, work: Path, device: str, changed: Mapping[str, str | None] | None = None) -> None:
    """Run a stage; its progress goes to the terminal, its command line to a file beside its folder.

    Raises CalledProcessError when it fails.
    """
    words = command(stage, work, device, changed)
    file = work / f"{stage}.command.sh"
    file.write_text(f"cd {shlex.quote(str(ROOT))} && {shlex.join(words)}\n".replace(" --", " \\\n    --"))
    print(f"$ {' '.join(words[1:2])} with {len(words[2:]) // 2} flags: {file}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    # transformers says of reference flags that they will be renamed one day: no news for a reader of this run
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    if device.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = device.partition(":")[2]
    elif device == "cuda":
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process: more GPUs would mean DataParallel
    subprocess.run(words, cwd=ROOT, env=environment, check=True, stdin=subprocess.DEVNULL)
