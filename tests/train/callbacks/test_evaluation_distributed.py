"""Evaluation, losses by modality and packing in two processes give the numbers of one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import BIN, ROOT, Training, launch
from recorded_training import flags

HAS_COMPILER = shutil.which("g++") and (shutil.which("ninja") or (BIN / "ninja").exists())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_COMPILER, reason="DeepSpeed compiles for CPUs: needs g++ and ninja"),
]

KEYS = ("loss", "loss_text", "loss_image", "eval_loss", "eval_loss_text", "eval_loss_image")
# 13 records are evaluated, in batches of 3 on 2 processes: some are read twice and must count once
COMMON = (
    "--version v1 --data_path {data}/finetune.json --eval_split 0.2 --eval_strategy steps --eval_steps 2 "
    "--pretrain_mm_mlp_adapter {ck}/llava-tiny-pretrain/mm_projector.bin --mm_projector_type mlp2x_gelu "
    "--mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad --max_steps 4 "
    "--learning_rate 1e-3 --save_strategy no --per_device_eval_batch_size 3"
)
WAYS = {
    "ddp": "",
    "ddp_packed": "--packing True",
    "zero3": f"--deepspeed {ROOT}/scripts/zero3.json",
    "zero3_packed": f"--packing True --deepspeed {ROOT}/scripts/zero3.json",
}

History = dict[str, list[float]]


@pytest.fixture(scope="module")
def histories(
    checkpoints: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], History]:
    """Do all runs; returns the logged numbers of one of them by key."""
    root = tmp_path_factory.mktemp("evaluation")

    def training(name: str, more: str) -> Training:
        return Training(name, flags(checkpoints, training_data, root / name, f"{COMMON} {more}"))

    two = [training(name, f"{more} --per_device_train_batch_size 1") for name, more in WAYS.items()]
    # as many samples a step in the same micro-batches
    one = "--per_device_train_batch_size 1 --gradient_accumulation_steps 2 --per_device_eval_batch_size 4"
    launch(root, [training("one", one)], processes=1, limit_s=120)
    launch(root, two, processes=2, limit_s=300)

    def read(name: str) -> History:
        log = json.loads((root / name / "trainer_state.json").read_text())["log_history"]
        return {key: [entry[key] for entry in log if key in entry] for key in KEYS}

    return read


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_log_what_one_does(way: str, histories: Callable[[str], History]) -> None:
    one, two = histories("one"), histories(way)
    assert len(one["eval_loss"]) == 2 and len(one["loss"]) == 4 and len(one["loss_image"]) >= 3
    for key in KEYS:
        assert two[key] == pytest.approx(one[key], rel=1e-4), key
