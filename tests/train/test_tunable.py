"""--mm_tunable_parts says what trains as LLaVA-NeXT's scripts do."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_training import flags, run_train

from llava.model.checkpoints.files import read_config
from llava.train.args import parse_args
from llava.utils import UserError

TOWER, PROJECTOR, LLM = "mm_vision_tower", "mm_mlp_adapter", "mm_language_model"
DATA = "--version v1 --data_path {data}/finetune.json --image_aspect_ratio pad"
RUN = f"{DATA} --mm_projector_type mlp2x_gelu --mm_use_im_patch_token False --learning_rate 2e-4"


@pytest.mark.parametrize(
    ("parts", "tune", "freeze_mlp", "unfreeze", "freeze_llm"),
    [
        (f"{TOWER},{PROJECTOR},{LLM}", False, False, True, False),
        (f"{PROJECTOR}, {LLM}", False, False, False, False),
        (LLM, False, True, False, False),
        (PROJECTOR, True, False, False, False),
        (f"{TOWER},{PROJECTOR}", True, False, True, False),
        (TOWER, False, True, True, True),
    ],
)
def test_parts_are_the_references_flags(tmp_path, parts, tune, freeze_mlp, unfreeze, freeze_llm) -> None:
    argv = ["--output_dir", str(tmp_path / "out"), "--data_path", "x.json", "--vision_tower", "t"]
    ours, _, training = parse_args([*argv, "--mm_tunable_parts", parts])
    found = (ours.tune_mm_mlp_adapter, training.freeze_mm_mlp_adapter, ours.unfreeze_mm_vision_tower)
    assert (*found, ours.freeze_backbone) == (tune, freeze_mlp, unfreeze, freeze_llm)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (f"{TOWER},mm_vision_resampler", "has 'mm_vision_resampler'; expected some of"),
        ("", "has ''; expected some of"),
        (f"{LLM} --freeze_backbone True", "and --freeze_backbone both say"),
        (f"{PROJECTOR} --lora_enable True", "add it"),
    ],
)
def test_what_is_refused(tmp_path, more, said) -> None:
    argv = ["--output_dir", str(tmp_path / "out"), "--data_path", "x.json", "--vision_tower", "t"]
    with pytest.raises(UserError, match=said):
        parse_args([*argv, "--mm_tunable_parts", *(more.split() or [""])])


@pytest.mark.slow
def test_the_tower_alone_trains(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    """--freeze_backbone would leave the head to train."""
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", f"{RUN} --mm_tunable_parts {TOWER}"))
    assert run.trained and all("vision_tower" in name for name in run.trained)
    config = read_config(tmp_path / "out")
    assert (config["mm_tunable_parts"], config["unfreeze_mm_vision_tower"]) == (TOWER, True)
