"""llava.train.args: flags of the reference's scripts, old names, refusals in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from warming import python

from llava.train.args import TrainingArguments, parse_args
from llava.utils import UserError

# what scripts/v1_5/finetune.sh of the reference passes, without --deepspeed and --report_to wandb
FINETUNE = """
    --model_name_or_path lmsys/vicuna-13b-v1.5 --version v1 --data_path ./data.json --image_folder ./images
    --vision_tower openai/clip-vit-large-patch14-336 --pretrain_mm_mlp_adapter ./mm_projector.bin
    --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 --mm_use_im_start_end False
    --mm_use_im_patch_token False --image_aspect_ratio pad --group_by_modality_length True --bf16 True
    --num_train_epochs 1 --per_device_train_batch_size 16 --per_device_eval_batch_size 4
    --gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy steps --save_steps 50000
    --save_total_limit 1 --learning_rate 2e-5 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine
    --logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True
    --dataloader_num_workers 4 --lazy_preprocess True --report_to none
"""


def _parse(more: str, tmp_path: Path) -> TrainingArguments:
    argv = f"--data_path x.json --output_dir {tmp_path} --report_to none {more}".split()
    return parse_args(argv)[2]


def test_flags_of_the_finetuning_script(tmp_path: Path) -> None:
    model, data, training = parse_args([*FINETUNE.split(), "--output_dir", str(tmp_path)])
    assert (model.mm_vision_select_layer, model.mm_use_im_patch_token) == (-2, False)
    assert (data.image_aspect_ratio, data.image_folder) == ("pad", "./images")
    assert training.eval_strategy.value == "no"
    assert training.get_warmup_steps(1000) == 30
    assert training.bf16 and training.gradient_checkpointing and training.group_by_modality_length
    assert (training.optim.value, training.remove_unused_columns) == ("adamw_torch", False)


def test_defaults_of_the_reference(tmp_path: Path) -> None:
    model, data, training = parse_args(["--data_path", "x", "--output_dir", str(tmp_path)])
    assert (model.model_name_or_path, model.version) == ("facebook/opt-125m", "v0")
    assert (model.mm_projector_type, model.mm_vision_select_layer) == ("linear", -1)
    assert (model.mm_use_im_patch_token, model.mm_patch_merge_type) == (True, "flat")
    assert (data.image_aspect_ratio, data.is_multimodal) == ("square", False)
    assert (training.model_max_length, training.lora_r, training.lora_alpha) == (512, 64, 16)
    assert (training.lora_dropout, training.lora_bias, training.bits) == (0.05, "none", 16)
    assert (training.quant_type, training.double_quant, training.mpt_attn_impl) == ("nf4", True, "triton")


def test_steps_of_warmup_beat_the_ratio(tmp_path: Path) -> None:
    assert _parse("--warmup_ratio 0.5 --warmup_steps 7", tmp_path).get_warmup_steps(100) == 7
    assert _parse("--warmup_ratio 0.0", tmp_path).get_warmup_steps(100) == 0


def test_old_names_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    training = _parse(
        "--evaluation_strategy steps --eval_steps 5 --eval_split 0.1 --no_cuda True --optim adamw_hf "
        "--overwrite_output_dir True --save_safetensors True --group_by_length True --logging_dir logs",
        tmp_path,
    )
    assert training.eval_strategy.value == "steps"
    assert training.use_cpu and training.optim.value == "adamw_torch"
    assert training.overwrite_output_dir and training.group_by_length
    assert os.environ.pop("TENSORBOARD_LOGGING_DIR") == "logs"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bits 3", "--bits is 3; expected one of 4, 8, 16"),
        ("--bits 4", "--bits 4 freezes the LLM"),
        ("--lora_bias some", "expected one of none, all, lora_only"),
        ("--image_aspect_ratio wide", "known values: square, pad, anyres"),
        ("--mm_vision_select_feature cls", "expected one of patch, cls_patch"),
        ("--tune_mm_mlp_adapter True", "exists only with --vision_tower"),
        ("--mm_projector_lr 1e-5", "exists only with --vision_tower"),
        ("--vision_tower x --tune_mm_mlp_adapter True --freeze_mm_mlp_adapter True", "give one of them"),
        ("--vision_tower x --tune_mm_mlp_adapter True --lora_enable True", "exclude each other"),
        ("--save_safetensors False", "safetensors only"),
        ("--warmup_ratio 1.5", "--warmup_ratio is 1.5"),
        ("--warmup_ration 0.1", "did you mean --warmup_ratio"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("--save_strategy sometimes", "invalid choice: 'sometimes'"),
        ("--report_to nosuch", "--report_to: nosuch is not supported"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size is 0; expected"),
    ],
)
def test_refused_in_one_sentence(flags: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _parse(flags, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_data_path_is_refused() -> None:
    with pytest.raises(UserError, match="--data_path is missing"):
        parse_args(["--output_dir", "x"])


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train.py", "train_mem.py", "train_xformers.py"])
def test_programs_report_a_bad_flag_on_one_line(program: str, tmp_path: Path) -> None:
    """The file is run by its path, from a folder that is not the project's."""
    import llava

    script = Path(llava.__file__).parent / "train" / program
    env = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    interpreter = sys.executable if program == "train.py" else python()
    done = subprocess.run(
        [interpreter, str(script), "--data_path", "x", "--bits", "3"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: --bits is 3; expected one of 4, 8, 16"
    assert "Traceback" not in done.stderr
