"""RunPlan and DataSettings: made of the command line, or of the argument objects of other projects."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import FrozenInstanceError, asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.train.args import DataArguments, TrainingArguments, make_data_settings, make_plan, parse_args
from llava.train.plan import DataSettings, RunPlan, adapted, plan_of

BASE = "--model_name_or_path x --vision_tower y --data_path z --output_dir {out} --report_to none"


def _parsed(words: str, out: Path) -> Any:
    return parse_args(f"{BASE.format(out=out)} {words}".split())


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        ("--tune_mm_mlp_adapter True --mm_projector_type mlp2x_gelu", "projector"),
        ("--tune_mm_mlp_adapter True --unfreeze_mm_vision_tower True", "whole"),
        ("", "whole"),
        ("--unfreeze_mm_vision_tower True", "whole"),
        ("--lora_enable True", "adapters"),
        ("--lora_enable True --unfreeze_mm_vision_tower True", "adapters"),
    ],
)
def test_the_stage_says_what_is_written(words: str, stage: str, tmp_path: Path) -> None:
    model_args, _, training_args = _parsed(words, tmp_path)
    assert make_plan(model_args, training_args).stage == stage


def test_a_plan_takes_its_fields_from_both_argument_objects(tmp_path: Path) -> None:
    model_args, data_args, training_args = _parsed(
        "--mm_use_im_start_end True --mm_projector_lr 2e-5 --bf16 True --lora_enable True --lora_r 8 "
        "--packing True --group_by_modality_length True --seed 7 --gradient_checkpointing True",
        tmp_path,
    )
    before = deepcopy(asdict(model_args)), deepcopy(asdict(data_args))
    plan = make_plan(model_args, training_args)
    assert (plan.use_im_start_end, plan.lora_r, plan.seed) == (True, 8, 7)
    assert plan.packing and plan.group_by_modality_length and plan.checkpoints_activations
    assert plan.weight_dtype == plan.compute_dtype == torch.bfloat16
    assert plan.own_rate("model.mm_projector.0.weight") == 2e-5
    assert plan.own_rate("model.vision_tower.x") is None and plan.own_rate("lm_head.weight") is None
    settings = make_data_settings(model_args, data_args, label_masks="spans")
    assert settings.is_multimodal and settings.mm_use_im_start_end and settings.label_masks == "spans"
    assert settings.data_path == "z" and settings.shuffle_buffer == data_args.shuffle_buffer
    assert (asdict(model_args), asdict(data_args)) == before
    assert not data_args.is_multimodal
    with pytest.raises(FrozenInstanceError):
        plan.bits = 4  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        settings.is_multimodal = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("bf16", "fp16", "deepspeed", "frozen", "weights", "trained"),
    [
        (True, False, None, False, torch.float32, torch.float32),
        (True, False, None, True, torch.bfloat16, torch.float32),
        (True, False, "zero2.json", False, torch.bfloat16, torch.bfloat16),
        (False, True, None, True, torch.float16, torch.float32),
        (False, False, "zero3.json", False, torch.float32, torch.float32),
    ],
)
def test_dtypes(
    bf16: bool, fp16: bool, deepspeed: str | None, frozen: bool, weights: torch.dtype, trained: torch.dtype
) -> None:
    plan = RunPlan(bf16=bf16, fp16=fp16, deepspeed=deepspeed, lora_enable=frozen)
    assert (plan.weight_dtype, plan.trained_dtype) == (weights, trained)
    assert RunPlan(device=torch.device("cuda")).tower_dtype == torch.float16  # as in the reference


def test_every_flag_of_the_plan_exists(tmp_path: Path) -> None:
    """A field whose name no argument object has would keep its default for ever."""
    model_args, data_args, training_args = _parsed("", tmp_path)
    only_in_some_versions = {"activation_checkpointing", "activation_checkpointing_kwargs"}
    only_with_deepspeed = {"hf_deepspeed_config"}
    known = {name for one in (model_args, training_args) for name in dir(one)} | {"use_im_start_end"}
    grouping = {"train_sampling_strategy"}
    missing = {field.name for field in fields(RunPlan)} - known
    assert missing <= only_in_some_versions | only_with_deepspeed | grouping
    of_the_model = {"image_length", "frame_length", "pads_several"}
    assert {field.name for field in fields(DataSettings)} <= set(dir(data_args)) | of_the_model


@dataclass
class OldArguments(TrainingArguments):
    """Training arguments of another project; the reference's train() sets two fields from outside."""

    my_field: int = 3


def test_arguments_of_another_project_are_read_once(tmp_path: Path) -> None:
    args: Any = OldArguments(output_dir=str(tmp_path), report_to=[])
    args.tune_mm_mlp_adapter = True
    args.use_im_start_end = True
    plan = plan_of(SimpleNamespace(args=args))  # a Trainer that is not ours
    assert plan.stage == "projector" and plan.use_im_start_end
    ours = SimpleNamespace(args=args, plan=RunPlan(lora_enable=True))
    assert plan_of(ours) is ours.plan


def test_objects_with_few_fields_get_the_defaults() -> None:
    settings = adapted(DataSettings, SimpleNamespace(is_multimodal=True, image_folder="f", other=1))
    assert settings == DataSettings(is_multimodal=True, image_folder="f")
    assert adapted(DataSettings, settings) is settings
    assert adapted(RunPlan, SimpleNamespace(), SimpleNamespace(bits=8), lora_r=2) == RunPlan(bits=8, lora_r=2)
    data_args = DataArguments(data_path="d")
    data_args.image_processor = object()
    assert adapted(DataSettings, data_args).image_processor is data_args.image_processor
