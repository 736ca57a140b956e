"""llava.train.checks: what is wrong with a flag is said at once, in one sentence that names it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from warming import python

from llava.train.args import parse_args
from llava.train.train import train
from llava.utils import UserError

ROWS = [
    ("--model_max_length 0", "--model_max_length is 0; expected a whole number from 1"),
    ("--learning_rate=-1e-5", "--learning_rate is -1e-05; expected a number from 0"),
    ("--learning_rate nan", "--learning_rate is nan"),
    ("--weight_decay inf", "--weight_decay is inf"),
    ("--mm_projector_lr -1 --vision_tower x", "--mm_projector_lr is -1.0"),
    ("--mm_vision_tower_lr nan --vision_tower x", "--mm_vision_tower_lr is nan"),
    ("--neftune_noise_alpha nan", "--neftune_noise_alpha is nan; expected a finite number"),
    ("--adam_beta2 1", "--adam_beta2 is 1.0; expected a number from 0 below 1"),
    ("--lora_enable True --lora_r 0", "--lora_r is 0; expected a whole number from 1"),
    ("--lora_enable True --lora_alpha 0", "--lora_alpha is 0; expected a number above 0"),
    ("--lora_enable True --lora_dropout 1.0", "--lora_dropout is 1.0; expected a number from 0 below 1"),
    ("--lora_enable True --lora_dropout -0.1", "--lora_dropout is -0.1"),
    ("--dataloader_num_workers -1", "--dataloader_num_workers is -1; expected a whole number from 0"),
    ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps is 0"),
    ("--warmup_ratio 1.0", "--warmup_ratio is 1.0; expected a number from 0 below 1"),
    ("--warmup_steps -3", "--warmup_steps is -3"),
    ("--warmup_steps 2.5", "--warmup_steps is 2.5"),
    ("--save_steps 0", "--save_steps is 0"),
    ("--save_steps 2.5", "--save_steps is 2.5"),
    ("--logging_steps 0", "--logging_steps is 0"),
    ("--num_train_epochs 0", "--num_train_epochs is 0, so nothing would be trained"),
    ("--num_train_epochs -1", "--num_train_epochs is -1.0"),
    ("--max_steps 0", "--max_steps is 0, so nothing would be trained"),
    ("--max_steps -5", "--max_steps is -5, so nothing would be trained"),
    ("--model_max_length 9999999999", "expected a whole number from 1 up to 2,147,483,647"),
    ("--dataloader_num_workers 1 --dataloader_prefetch_factor 0", "--dataloader_prefetch_factor is 0"),
    ("--vision_tower x --mm_vision_resolution 0", "--mm_vision_resolution is 0"),
    (
        "--lr_scheduler_type cosine_with_min_lr",
        "--lr_scheduler_type cosine_with_min_lr does not work with --lr_scheduler_kwargs {}",
    ),
    ("--lr_scheduler_type warmup_stable_decay", "missing 1 required positional argument: 'num_decay_steps'"),
    (
        '--lr_scheduler_type cosine --lr_scheduler_kwargs {"a":1}',
        "--lr_scheduler_type cosine does not work with --lr_scheduler_kwargs {'a': 1}",
    ),
    ("--optim galore_adamw --optim_target_modules all-linear", "--optim galore_adamw: "),
    ("--max_lost_samples 2", "--max_lost_samples is 2.0; expected a number from 0 up to 1"),
    ("--image_aspect_ratio wide", "--image_aspect_ratio is 'wide'"),
    ("--image_grid_pinpoints [[336]]", "--image_grid_pinpoints is '[[336]]'"),
    ("--image_grid_pinpoints [[0,336]]", "--image_grid_pinpoints is [[0,336]]; expected positive"),
    ("--image_grid_pinpoints tiles", "--image_grid_pinpoints is 'tiles'"),
    ("--deepspeed {folder}/none.json", "--deepspeed is '{folder}/none.json', and there is no such file"),
    ("--deepspeed {folder}/broken.json", "--deepspeed: {folder}/broken.json is not valid JSON"),
    ("--deepspeed {folder}/list.json", "--deepspeed: {folder}/list.json holds no JSON object"),
    ("--fsdp_config {folder}/none.json", "--fsdp_config is '{folder}/none.json'"),
    ("--output_dir {folder}/list.json", "--output_dir {folder}/list.json cannot be written: it is a file"),
    (
        "--output_dir {folder}/list.json/x",
        "--output_dir {folder}/list.json/x cannot be written: a part of the path is no folder",
    ),
    ("--output_dir=", "--output_dir is missing"),
    (
        "--vision_tower x --tune_mm_mlp_adapter True --mm_projector_type identity",
        "--mm_projector_type identity has no weights",
    ),
]
# seen by train() before tokenizer, data and model
FILES = [
    ("--vision_tower {folder}/none", "--vision_tower: The vision tower '{folder}/none'"),
    ("--vision_tower {folder}/foreign", "is of type 'llama'; known types"),
    ("--vision_tower {tower} --pretrain_mm_mlp_adapter {folder}/none.bin", "none.bin is no file"),
    ("--vision_tower {tower} --pretrain_mm_mlp_adapter {folder}/list.json", "--pretrain_mm_mlp_adapter: "),
    (
        "--vision_tower {tower} --pretrain_mm_mlp_adapter {folder}/other.bin",
        "--pretrain_mm_mlp_adapter {folder}/other.bin holds no weights named mm_projector",
    ),
    *(
        (
            f"--vision_tower {{tower}} --pretrain_mm_mlp_adapter {{folder}}/rubbish{seed}.bin",
            f"--pretrain_mm_mlp_adapter: {{folder}}/rubbish{seed}.bin is damaged",
        )
        for seed in range(4)
    ),
]
# file of a tower -> what is written into it (None: it is missing), what is said
TOWER_FILES = {
    "no weights": ("pytorch_model.bin", None, "holds no weights"),
    "rubbish for weights": ("pytorch_model.bin", b"]}.(" * 99, "pytorch_model.bin is damaged"),
    "no JSON for the processor": ("preprocessor_config.json", b"{", "cannot be read as JSON"),
    "a faulty config": (
        "config.json",
        b'{"model_type": "clip_vision_model", "patch_size": 0}',
        "has a config.json that cannot be used: ",
    ),
    "a processor of words": ("preprocessor_config.json", b'{"size": "large"}', "preprocessor_config.json"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checks")
    (made / "broken.json").write_text('{"a": ')
    (made / "list.json").write_text("[]")
    (made / "foreign").mkdir()
    (made / "foreign" / "config.json").write_text('{"model_type": "llama"}')
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, made / "other.bin")
    for seed in range(4):
        (made / f"rubbish{seed}.bin").write_bytes(random.Random(seed).randbytes(2000))
    return made


def _listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("flags", "message"), ROWS)
def test_flags_are_refused_before_anything_is_loaded(flags: str, message: str, folder: Path) -> None:
    before = _listing(folder)
    argv = ["--data_path", "x.json", "--output_dir", str(folder / "out"), "--report_to", "none"]
    with pytest.raises(UserError) as caught:
        parse_args([*argv, *flags.replace("{folder}", str(folder)).split()])
    assert message.replace("{folder}", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert _listing(folder) == before


@pytest.mark.parametrize(("flags", "message"), FILES)
def test_files_are_refused_before_anything_is_loaded(
    flags: str, message: str, folder: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _listing(folder)
    tower = checkpoints / "tiny-clip"
    given = flags.replace("{folder}", str(folder)).replace("{tower}", str(tower)).split()
    argv = ["--data_path", "none.json", "--output_dir", str(folder / "out"), "--report_to", "none", *given]
    monkeypatch.setattr(sys, "argv", ["train.py", "--model_name_or_path", str(folder / "no-model"), *argv])
    with pytest.raises(UserError) as caught:
        train()
    assert message.replace("{folder}", str(folder)) in str(caught.value)
    assert _listing(folder) == before


def _start(model: Path, tower: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    """Return what train() says about its flags, with data that is missing."""
    argv = ["--model_name_or_path", str(model), "--vision_tower", str(tower), *more, "--report_to", "none"]
    data = ["--data_path", str(folder / "none.json"), "--output_dir", str(folder / "out"), "--version", "v1"]
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, *data])
    with pytest.raises(UserError) as caught:
        train()
    assert "\n" not in str(caught.value) and not (folder / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize("damage", TOWER_FILES)
def test_files_of_a_tower_are_looked_at_before_anything_is_loaded(
    damage: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = Path(shutil.copytree(checkpoints / "tiny-clip", tmp_path / "tower"))
    file, content, message = TOWER_FILES[damage]
    (tower / file).unlink()
    if content is not None:
        (tower / file).write_bytes(content)
    told = _start(checkpoints / "vicuna-tiny", tower, tmp_path, monkeypatch)
    assert told.startswith("--vision_tower: ") and message in told
    told = _start(checkpoints / "llava-tiny-v1.5-st", tower, tmp_path, monkeypatch)
    if "weights" in damage:  # that checkpoint has the tower's
        assert "none.json" in told


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "llava_onevision"])
def test_a_model_of_transformers_is_named_as_one(
    model_type: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as a LLaVA whose settings are missing."""
    (tmp_path / "hf").mkdir()
    content = {"model_type": model_type, "text_config": {"model_type": "llama"}, "vision_config": {}}
    content["architectures"] = ["LlavaForConditionalGeneration"]
    (tmp_path / "hf/config.json").write_text(json.dumps(content))
    told = _start(tmp_path / "hf", checkpoints / "tiny-clip", tmp_path, monkeypatch)
    assert "transformers" in told and "mm_hidden_size" not in told


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu", "mlp3x_gelu"])
def test_a_projector_of_another_kind_is_seen_before_the_model_is_loaded(
    kind: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file alone, without the config.json of its stage 1 that names the kind."""
    base, tower = checkpoints / "vicuna-tiny", checkpoints / "tiny-clip"
    file = Path(shutil.copy(checkpoints / "llava-tiny-pretrain" / "mm_projector.bin", tmp_path))
    flags = ["--pretrain_mm_mlp_adapter", str(file), "--mm_projector_type", kind]
    told = _start(base, tower, tmp_path, monkeypatch, *flags)
    if kind == "mlp2x_gelu":
        assert "none.json" in told
    else:
        assert told.startswith(f"{file} does not fit the projector '{kind}': it holds")


def test_a_layer_that_the_tower_lacks_is_seen_before_anything_is_loaded(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tower = checkpoints / "vicuna-tiny", checkpoints / "tiny-clip"
    told = _start(base, tower, tmp_path, monkeypatch, "--mm_vision_select_layer", "99")
    assert told == "--mm_vision_select_layer is 99; this tower has hidden states -5 to 4."


def test_no_output_folder_is_only_for_a_dry_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    argv = ["--data_path", "x.json", "--report_to", "none"]
    with pytest.raises(UserError, match="--output_dir is missing"):
        parse_args(argv)
    assert parse_args([*argv, "--dry_run", "True"])[2].dry_run


@pytest.mark.parametrize(
    "flags",
    [
        "--save_strategy no --save_steps 0",
        "--logging_strategy epoch --logging_steps 0",
        "--num_train_epochs 0 --max_steps 3",
        "--warmup_steps 0.5",
        "--save_steps 0.1",
        "--learning_rate 0",
        "--max_grad_norm 0",
    ],
)
def test_unusual_flags_that_mean_something_are_taken(flags: str, folder: Path) -> None:
    argv = ["--data_path", "x.json", "--output_dir", str(folder / "out"), "--report_to", "none"]
    parse_args([*argv, *flags.split()])


@pytest.mark.parametrize("anyres", ["anyres", "anyres_max_9"])
def test_tiles_without_grids_are_refused_before_anything_is_loaded(
    anyres: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--image_aspect_ratio", anyres, "--mm_patch_merge_type", "spatial_unpad"]
    base, tower = checkpoints / "vicuna-tiny", checkpoints / "tiny-clip"
    told = _start(base, tower, tmp_path, monkeypatch, *flags)
    assert told.startswith(f"--image_aspect_ratio {anyres} needs tile grids") and "[[56,112]" in told
    told = _start(base, tower, tmp_path, monkeypatch, *flags, "--image_grid_pinpoints", "[[55,112]]")
    assert "no multiple of 56" in told
    assert "none.json" in _start(
        base, tower, tmp_path, monkeypatch, *flags, "--image_grid_pinpoints", "[[56,112]]"
    )
    assert "none.json" in _start(checkpoints / "llava-tiny-v1.6", tower, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("flags", "offline", "message"),
    [
        ("", False, "--push_to_hub True needs a token of the hub, and there is none"),
        ("--hub_token x", True, "--push_to_hub True cannot work: HF_HUB_OFFLINE is set"),
        ("--hub_token x --hub_model_id a/b/c", False, "--hub_model_id is a/b/c"),
        ("--hub_token x --hub_model_id a..b", False, "--hub_model_id is a..b"),
        ("--hub_token x --output_dir {folder}/-out-", False, "--output_dir is {folder}/-out-"),
    ],
)
def test_what_cannot_be_pushed_is_told_at_the_start(
    flags: str, offline: bool, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    start = ["--model_name_or_path", str(folder / "foreign")]  # no name that the hub would be asked about
    argv = [*start, "--data_path", "x.json", "--output_dir", str(folder / "out"), "--report_to", "none"]
    flags = flags.replace("{folder}", str(folder))
    with pytest.raises(UserError) as caught:
        parse_args([*argv, "--push_to_hub", "True", *flags.split()])
    assert message.replace("{folder}", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)
    parse_args([*argv, *flags.split()])
    if not offline:
        parse_args([*argv, "--push_to_hub", "True", "--hub_token", "x", "--hub_model_id", "me/model"])


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="it is not writable for you"):
        parse_args(["--data_path", "x.json", "--output_dir", str(tmp_path / "a" / "b")])


@pytest.mark.slow
def test_the_program_ends_with_exit_code_2(folder: Path) -> None:
    before = _listing(folder)
    program = ["-m", "llava.train.train", "--data_path", "x.json", "--output_dir", str(folder / "out")]
    done = subprocess.run(
        [python(), *program, "--num_train_epochs", "0"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: --num_train_epochs is 0")
    assert "Traceback" not in done.stderr
    assert _listing(folder) == before
