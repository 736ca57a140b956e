"""The training scripts: the command line of each has the reference's values, parses, and trains."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import deepspeed as deepspeed_integration

from llava.train.args import DataArguments, ModelArguments, TrainingArguments, parse_args

SCRIPTS = Path(__file__).parents[2] / "scripts"
FIRST = {"vision_tower": "openai/clip-vit-large-patch14", "mm_projector_type": "linear"}
V15 = {"vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu"}
STAGE_1 = {"version": "plain", "tune_mm_mlp_adapter": True, "lora_enable": False, "save_steps": 24000}
STAGE_2 = {"version": "v1", "tune_mm_mlp_adapter": False, "save_steps": 50000}
OWN_PROJECTOR = {"pretrain_mm_mlp_adapter": None}
FIRST_PROJECTOR = {
    "pretrain_mm_mlp_adapter": "./checkpoints/llava-vicuna-v1-3-7b-pretrain/mm_projector.bin",
    "model_name_or_path": "./checkpoints/vicuna-v1-3-7b",
}
MIX = {
    "data_path": "./playground/data/llava_v1_5_mix665k.json",
    "image_folder": "./playground/data",
    "image_aspect_ratio": "pad",
    "group_by_modality_length": True,
}
BIG_LORA = {"lora_enable": True, "lora_r": 128, "lora_alpha": 256, "mm_projector_lr": 2e-5, "bits": 16}
SMALL_LORA = {"lora_enable": True, "lora_r": 64, "lora_alpha": 16, "mm_projector_lr": None}
COCO = {"image_folder": "/path/to/coco/train2017", "image_aspect_ratio": "square"}

# the same in every script
COMMON = {
    "bf16": True,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 4,
    "weight_decay": 0.0,
    "warmup_steps": 0.03,  # below 1: a part of all steps
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "model_max_length": 2048,
    "gradient_checkpointing": True,
    "dataloader_num_workers": 4,
    "lazy_preprocess": True,
    "save_strategy": "steps",
    "eval_strategy": "no",
    "save_total_limit": 1,
    "report_to": ["wandb"],
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "freeze_backbone": False,
    "optim": "adamw_torch",
    "max_grad_norm": 0.0,
}
# script: (program, DeepSpeed config, batch size, learning rate, what is special)
RECIPES: dict[str, tuple[str, str, int, float, dict[str, Any]]] = {
    "v1_5/pretrain.sh": (
        "train_mem.py",
        "zero2.json",
        32,
        1e-3,
        {
            **V15,
            **STAGE_1,
            "model_name_or_path": "lmsys/vicuna-13b-v1.5",
            "data_path": "./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
            "image_folder": "./playground/data/LLaVA-Pretrain/images",
            "image_aspect_ratio": "square",
            "output_dir": "./checkpoints/llava-v1.5-13b-pretrain",
        },
    ),
    "v1_5/finetune.sh": (
        "train_mem.py",
        "zero3.json",
        16,
        2e-5,
        {
            **V15,
            **STAGE_2,
            **MIX,
            "lora_enable": False,
            "model_name_or_path": "lmsys/vicuna-13b-v1.5",
            "pretrain_mm_mlp_adapter": "./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin",
            "output_dir": "./checkpoints/llava-v1.5-13b",
        },
    ),
    "v1_5/finetune_lora.sh": (
        "train_mem.py",
        "zero3.json",
        16,
        2e-4,
        {
            **V15,
            **STAGE_2,
            **MIX,
            **BIG_LORA,
            "model_name_or_path": "lmsys/vicuna-13b-v1.5",
            "pretrain_mm_mlp_adapter": "./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin",
            "output_dir": "./checkpoints/llava-v1.5-13b-lora",
        },
    ),
    "v1_5/finetune_task.sh": (
        "train_mem.py",
        "zero3.json",
        16,
        2e-5,
        {
            **V15,
            **STAGE_2,
            **MIX,
            **OWN_PROJECTOR,
            "lora_enable": False,
            "model_name_or_path": "liuhaotian/llava-v1.5-13b",
            "output_dir": "./checkpoints/llava-v1.5-13b-task",
        },
    ),
    "v1_5/finetune_task_lora.sh": (
        "train_mem.py",
        "zero3.json",
        16,
        2e-4,
        {
            **V15,
            **STAGE_2,
            **MIX,
            **BIG_LORA,
            **OWN_PROJECTOR,
            "model_name_or_path": "liuhaotian/llava-v1.5-13b",
            "output_dir": "./checkpoints/llava-v1.5-13b-task-lora",
        },
    ),
    "pretrain.sh": (
        "train_mem.py",
        "zero2.json",
        16,
        2e-3,
        {**FIRST, **STAGE_1, "output_dir": "./checkpoints/llava-vicuna-v1-3-7b-pretrain"},
    ),
    "pretrain_xformers.sh": (
        "train_xformers.py",
        "zero2.json",
        4,
        2e-3,
        {**FIRST, **STAGE_1, "bf16": False, "gradient_accumulation_steps": 4},
    ),
    "finetune.sh": (
        "train_mem.py",
        "zero2.json",
        16,
        2e-5,
        {
            **FIRST,
            **STAGE_2,
            **COCO,
            **FIRST_PROJECTOR,
            "lora_enable": False,
            "data_path": "./playground/data/llava_instruct_80k.json",
            "output_dir": "./checkpoints/llava-vicuna-v1-3-7b-finetune",
        },
    ),
    "finetune_full_schedule.sh": (
        "train_mem.py",
        "zero2.json",
        16,
        2e-5,
        {
            **FIRST,
            **STAGE_2,
            **COCO,
            **FIRST_PROJECTOR,
            "lora_enable": False,
            "data_path": "./playground/data/llava_instruct_158k.json",
            "num_train_epochs": 3,
        },
    ),
    "finetune_lora.sh": (
        "train_mem.py",
        "zero2.json",
        16,
        2e-5,
        {
            **FIRST,
            **STAGE_2,
            **COCO,
            **FIRST_PROJECTOR,
            **SMALL_LORA,
            "bits": 16,
            "data_path": "./playground/data/llava_instruct_80k.json",
            "output_dir": "./checkpoints/llava-vicuna-v1-3-7b-finetune_lora",
        },
    ),
    "finetune_qlora.sh": (
        "train_mem.py",
        "zero2.json",
        16,
        2e-5,
        {
            **FIRST,
            **STAGE_2,
            **COCO,
            **FIRST_PROJECTOR,
            **SMALL_LORA,
            "bits": 4,
            "quant_type": "nf4",
            "double_quant": True,
            "data_path": "./playground/data/llava_instruct_80k.json",
        },
    ),
    "finetune_sqa.sh": (
        "train_mem.py",
        "zero2.json",
        16,
        2e-5,
        {
            **FIRST,
            **STAGE_2,
            "lora_enable": False,
            "image_aspect_ratio": "square",
            "model_name_or_path": "lmsys/vicuna-13b-v1.3",
            "data_path": "/Data/ScienceQA/data/scienceqa/llava_train_QCM-LEA.json",
            "image_folder": "/Data/ScienceQA/data/scienceqa/images/train",
            "num_train_epochs": 12,
        },
    ),
}

# writes its arguments to $RECORD, as the launcher's stand-in
STUB = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"], "w") as file:
    json.dump(sys.argv[1:], file)
"""


def command_line(script: str, folder: Path, *more: str, **variables: object) -> list[str]:
    """Run a script with a stand-in for `deepspeed`; returns what the script gave to it."""
    launcher = folder / "bin" / "deepspeed"
    launcher.parent.mkdir(exist_ok=True)
    launcher.write_text(STUB)
    launcher.chmod(0o755)
    record = folder / "argv.json"
    environment = {
        "PATH": f"{launcher.parent}{os.pathsep}{os.environ['PATH']}",
        "RECORD": str(record),
        **{name: str(value) for name, value in variables.items()},
    }
    subprocess.run(
        ["bash", str(SCRIPTS / script), *more], check=True, env=environment, cwd=folder, timeout=60
    )
    return json.loads(record.read_text())


@contextlib.contextmanager
def parsed(
    argv: Sequence[str], patch: pytest.MonkeyPatch
) -> Iterator[tuple[ModelArguments, DataArguments, TrainingArguments]]:
    """Parse a command line; what DeepSpeed keeps of it beyond the block is forgotten."""
    if "wandb" not in sys.modules:
        patch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # only asked whether it is there
    try:
        yield parse_args(argv)
    finally:
        gc.collect()
        deepspeed_integration.unset_hf_deepspeed_config()


def test_every_script_is_here() -> None:
    owned_elsewhere = {"setup.sh", "test.sh", "quickstart.sh", "common.sh", "fetch_tokenizers.sh"}
    found = {str(path.relative_to(SCRIPTS)) for path in SCRIPTS.rglob("*.sh")}
    training = {name for name in found if "launch " in (SCRIPTS / name).read_text()} - owned_elsewhere
    assert training == set(RECIPES)
    assert all(os.access(SCRIPTS / name, os.X_OK) for name in RECIPES)


@pytest.mark.parametrize("script", RECIPES)
def test_values_are_the_references(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, config, batch_size, rate, special = RECIPES[script]
    argv = command_line(script, tmp_path)
    assert Path(argv[0]) == SCRIPTS.parent / "llava" / "train" / program
    flags = [part for part in argv if part.startswith("--")]
    assert len(flags) == len(set(flags))  # nothing is said twice
    assert argv[argv.index("--tf32") + 1] == ("False" if script == "pretrain_xformers.sh" else "True")
    expected = {
        **COMMON,
        "deepspeed": str(SCRIPTS / config),
        "per_device_train_batch_size": batch_size,
        "learning_rate": rate,
        **special,
    }
    with parsed(argv[1:], monkeypatch) as arguments:
        got = {name: value for part in arguments for name, value in vars(part).items()}
        got["deepspeed"] = str(Path(got["deepspeed"]).resolve())
        assert {name: got[name] for name in expected} == expected


def test_paths_and_flags_can_be_set_from_outside(tmp_path: Path) -> None:
    argv = command_line(
        "finetune.sh",
        tmp_path,
        *("--num_train_epochs", "2"),
        MODEL_VERSION="llama-2-7b-chat",
        PROMPT_VERSION="llava_llama_2",
        DATA_PATH="/data/with blank.json",
        DEEPSPEED_FLAGS="--hostfile hosts --num_gpus 4",
        ZERO_CONFIG="/configs/mine.json",
    )
    assert argv[:4] == ["--hostfile", "hosts", "--num_gpus", "4"]
    assert argv[argv.index("--model_name_or_path") + 1] == "./checkpoints/llama-2-7b-chat"
    assert argv[argv.index("--version") + 1] == "llava_llama_2"
    assert argv[argv.index("--data_path") + 1] == "/data/with blank.json"
    assert argv[argv.index("--deepspeed") + 1] == "/configs/mine.json"
    assert argv[-2:] == ["--num_train_epochs", "2"]  # the last one counts


def test_a_failing_launcher_fails_the_script(tmp_path: Path) -> None:
    launcher = tmp_path / "bin" / "deepspeed"
    launcher.parent.mkdir()
    launcher.write_text("#!/bin/sh\nexit 7\n")
    launcher.chmod(0o755)
    environment = {"PATH": f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(SCRIPTS / "pretrain.sh")], env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode == 7


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_zero_configs_follow_the_flags(name: str) -> None:
    """Nothing of what a flag sets is fixed in the files, so that one process and many train alike."""
    config = json.loads((SCRIPTS / f"{name}.json").read_text())
    zero = config["zero_optimization"]
    assert zero["stage"] == (2 if name == "zero2" else 3)
    assert "optimizer" not in config and "scheduler" not in config
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[key] == "auto"
    assert config["gradient_clipping"] == config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
    assert ("offload_optimizer" in zero) == ("offload_param" in zero) == (name == "zero3_offload")
    if zero["stage"] == 3:
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.slow
@pytest.mark.parametrize("script", RECIPES)
def test_two_steps_with_tiny_models(
    script: str, checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script's command line trains on a CPU; only paths, batch size, steps and logging differ."""
    program, *_, special = RECIPES[script]
    stage_1 = special.get("tune_mm_mlp_adapter", False)
    model = "llava-tiny-v1.5" if "task" in script else "vicuna-tiny"
    projector = checkpoints / "llava-tiny-pretrain" / "mm_projector.bin"
    output = tmp_path / "llava-out"
    more = "--max_steps 2 --per_device_train_batch_size 2 --dataloader_num_workers 0 --report_to none"
    if special["mm_projector_type"] == "linear" and not stage_1:
        projector = Path(__file__).parents[1] / "data" / "train" / "init_projector_linear.bin"
    argv = command_line(
        script,
        tmp_path,
        *more.split(),
        MODEL_PATH=checkpoints / model,
        VISION_TOWER=checkpoints / "tiny-clip",
        DATA_PATH=training_data / ("pretrain.json" if stage_1 else "finetune.json"),
        IMAGE_FOLDER=training_data / "images",
        PROJECTOR=projector,
        OUTPUT_DIR=output,
    )
    place = argv.index("--deepspeed")
    del argv[place : place + 2]  # DeepSpeed has its own tests, in two processes
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(SCRIPTS.parent / "llava" / "train" / program), run_name="__main__")
    state = json.loads((output / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    expected = "mm_projector.bin" if stage_1 else "model.safetensors"
    if special.get("lora_enable"):
        expected = "adapter_model.safetensors"
    assert (output / expected).exists()
