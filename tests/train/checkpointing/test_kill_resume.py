"""Runs that are killed (SIGKILL) at random moments, also while they save, end like runs that are not."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from recorded_training import flags, write_training_data
from warming import python

MODES = ("stage_1", "full", "lora", "qlora", "stream")
KILLS = 6  # of each mode

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} --learning_rate 1e-3"
SHORT = (
    "--per_device_train_batch_size 2 --num_train_epochs 2 --save_strategy steps --save_steps 2 "
    "--logging_steps 3 --group_by_modality_length True"
)
BY_MODALITY = "--group_by_modality_length True"
# dropout, random initial values and batches by length draw random numbers at every place there is
LORA = f"{CHAT} --lora_enable True --lora_r 4 --lora_dropout 0.1 --gradient_checkpointing True"
COMMANDS = {
    "stage_1": (
        f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {V15} "
        "--learning_rate 1e-3 --mm_patch_merge_type spatial_unpad --gradient_accumulation_steps 2"
    ),
    "full": f"{CHAT} --mm_projector_lr 1e-4 --max_steps 9",
    "lora": LORA,
    "qlora": f"{LORA} --bits 4",
    "stream": f"{CHAT} --lora_enable True --lora_r 4 --streaming True --shuffle_buffer 4 --max_steps 10",
}


def _shards(data: Path) -> str:
    """Write the chat records as two tar shards; returns their pattern."""
    records = json.loads((data / "finetune.json").read_text())
    for number in (0, 1):
        with tarfile.open(data / f"{number}.tar", "w") as shard:
            for one in records[number::2]:
                name = one["id"]
                image = one.pop("image", None)
                files = {f"{name}.json": json.dumps(one).encode()}
                if image:
                    files[f"{name}.png"] = (data / "images" / image).read_bytes()
                for file, content in files.items():
                    info = tarfile.TarInfo(file)
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    return str(data / "[01].tar")


@pytest.fixture(scope="module")
def report(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver has seen, mode by mode."""
    folder = tmp_path_factory.mktemp("kills")
    data = write_training_data(folder / "data", n=12)
    modes = {}
    for name, command in COMMANDS.items():
        if name == "stream":
            more = f"{command} {SHORT.replace(BY_MODALITY, '')} --data_path {_shards(data)}"
        else:
            more = f"{command} {SHORT}"
        argv = flags(checkpoints, data, folder, more)
        place = argv.index("--output_dir")
        modes[name] = argv[:place] + argv[place + 2 :]
    seed = random.SystemRandom().randrange(10**6)
    spec = {"modes": modes, "folder": str(folder), "kills": KILLS, "seed": seed}
    (folder / "spec.json").write_text(json.dumps(spec))
    driver = Path(__file__).parents[1] / "kill_driver.py"
    top = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": top}
    done = subprocess.run(
        [python(), str(driver), str(folder / "spec.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    logs = "\n".join(f"{one.name}: {one.read_text()[-1500:]}" for one in folder.glob("*.log"))
    assert done.returncode == 0, f"seed {seed}\n{done.stderr[-3000:]}\n{logs}"
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_killed_run_ends_like_an_undisturbed_one(mode: str, report: dict[str, Any]) -> None:
    seen = report[mode]
    assert len(seen["kills"]) == KILLS
    assert seen["wrong"] == []  # nothing that looks like a checkpoint is less than one
    assert seen["same_losses"], "a step had another loss after a kill"
    assert seen["same_log"]
    assert seen["same_weights"]
    assert seen["left_over"] == []
    assert seen["seen_twice"] > 0  # steps were lost and done again, so runs were really cut


@pytest.mark.slow
def test_runs_were_killed_while_they_saved(report: dict[str, Any]) -> None:
    kills = [kill for seen in report.values() for kill in seen["kills"]]
    assert len(kills) >= 20
    assert sum(bool(kill["left"]) for kill in kills) >= 5
