"""Starts a training stage of a quickstart: its flags as a command line, in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The flags of scripts/v1_5/pretrain.sh and finetune.sh that both stages share, at small size.
SHARED = {
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


def words_of(program: Sequence[str], flags: Mapping[str, str | None], work: Path, device: str) -> list[str]:
    """Build a command line: {work} in a value is the folder, a flag that is None is omitted."""
    on_gpu = device.startswith("cuda")
    given: dict[str, str | None] = {"bf16": str(on_gpu), "tf32": str(on_gpu), **flags}
    if not on_gpu:
        given["use_cpu"] = "True"
    words = [sys.executable, *program]
    for name, value in given.items():
        words += [] if value is None else [f"--{name}", value.format(work=work)]
    return words


def launch(words: Sequence[str], stage: str, work: Path, device: str) -> None:
    """Run a stage; its progress goes to the terminal, its command line to a file beside its folder.

    Raises CalledProcessError when it fails.
    """
    file = work / f"{stage}.command.sh"
    file.write_text(f"cd {shlex.quote(str(ROOT))} && {shlex.join(words)}\n".replace(" --", " \\\n    --"))
    program = " ".join(words[1 : next(place for place, word in enumerate(words) if word.startswith("--"))])
    flags = sum(word.startswith("--") for word in words)
    print(f"$ {program} with {flags} flags: {file}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    # transformers says of reference flags that they will be renamed one day: no news for a reader of this run
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    if device.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = device.partition(":")[2]
    elif device == "cuda":
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process: more GPUs would mean DataParallel
    subprocess.run(words, cwd=ROOT, env=environment, check=True, stdin=subprocess.DEVNULL)
