"""Going on with a run of two processes (DDP, FSDP2, ZeRO-2, ZeRO-3) equals a run without a break."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import BIN, ROOT, Training, launch, read_reports
from recorded_training import flags

from llava.model.checkpoints.files import read_tensors
from llava.train.checkpointing.folders import find_checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None or not (shutil.which("ninja") or (BIN / "ninja").exists()),
        reason="DeepSpeed compiles its communication for CPUs: needs g++ and ninja",
    ),
]

V15 = "--mm_use_im_start_end False --mm_use_im_patch_token False --mm_projector_type mlp2x_gelu"
CHAT = f"{V15} --version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad --learning_rate 2e-3"
KINDS = {
    "stage1": f"{V15} --version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True "
    "--mm_patch_merge_type spatial_unpad --image_aspect_ratio anyres "
    "--image_grid_pinpoints [[56,112],[112,56]]",
    "full": CHAT,
    "lora": f"{CHAT} --lora_enable True --lora_r 4 --lora_dropout 0.0",
}
WAYS = {
    "ddp": "",
    "fsdp2": "--fsdp full_shard --fsdp_config {data}/fsdp2.json",
    "zero2": f"--deepspeed {ROOT}/scripts/zero2.json",
    "zero3": f"--deepspeed {ROOT}/scripts/zero3.json",
}
RUNS = [(way, kind) for way in WAYS for kind in KINDS]
SAVING = "--save_strategy steps --save_steps 2 --max_steps 4 --save_total_limit 2"


@pytest.fixture(scope="module")
def out(checkpoints: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs: WAY-KIND without a break, WAY-KIND-cut resumed from the second step."""
    folder = tmp_path_factory.mktemp("resumed")
    data = shutil.copytree(training_data, folder / "data")
    (data / "fsdp2.json").write_text(json.dumps({"version": 2}))

    def training(way: str, kind: str, end: str) -> Training:
        name = f"{way}-{kind}{end}"
        more = f"{KINDS[kind]} {WAYS[way]} {SAVING} --per_device_train_batch_size 2 --use_cpu True"
        return Training(name, flags(checkpoints, data, folder / name, more))

    launch(folder, [training(way, kind, "") for way, kind in RUNS], processes=2, limit_s=300)
    for way, kind in RUNS:
        checkpoint = folder / f"{way}-{kind}-cut" / "checkpoint-2"
        shutil.copytree(folder / f"{way}-{kind}" / "checkpoint-2", checkpoint)
    launch(folder, [training(way, kind, "-cut") for way, kind in RUNS], processes=2, limit_s=300)
    return folder


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    names = ("mm_projector.bin", "model.safetensors", "adapter_model.safetensors", "non_lora_trainables.bin")
    found = {}
    for name in names:
        if (folder / name).exists():
            found.update(read_tensors(folder / name))
    return found


@pytest.mark.parametrize(("way", "kind"), RUNS)
def test_resumed_run_equals_an_unbroken_one(way: str, kind: str, out: Path) -> None:
    whole = next(read_reports(out, f"{way}-{kind}"))
    cut = next(read_reports(out, f"{way}-{kind}-cut"))
    assert len(whole["calls"]) == 4 and len(cut["calls"]) == 2  # micro-batches that were computed
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    a, b = _weights(out / f"{way}-{kind}"), _weights(out / f"{way}-{kind}-cut")
    assert a.keys() == b.keys()
    assert a
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("way", "kind"), RUNS)
def test_every_checkpoint_is_whole(way: str, kind: str, out: Path) -> None:
    for end in ("", "-cut"):
        folder = out / f"{way}-{kind}{end}"
        assert [(one.step, one.state) for one in find_checkpoints(folder)] == [
            (2, "complete"),
            (4, "complete"),
        ]
        assert not list(folder.glob("tmp-*"))
        names = {path.name for path in (folder / "checkpoint-4").iterdir()}
        assert {"rng_state_0.pth", "rng_state_1.pth", "run_memory_0.json", "run_memory_1.json"} <= names
        if kind == "stage1" and way != "fsdp2":  # nothing in it is as large as the LLM
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            assert max(sizes) < 200_000
        assert "preprocessor_config.json" in names and _weights(folder / "checkpoint-4")
