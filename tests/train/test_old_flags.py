"""llava.train.old_flags: every flag that transformers dropped since 4.37 is taken, with a note."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers

from llava.train.args import parse_args
from llava.train.old_flags import OLD_FLAGS, translate_old_flags
from llava.utils import UserError

# the fields of transformers.TrainingArguments of 4.37 that are not in every version since
FLAGS_OF_4_37 = [
    "adafactor",
    "dispatch_batches",
    "evaluation_strategy",
    "fp16_backend",
    "fp16_opt_level",
    "fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap",
    "group_by_length",
    "half_precision_backend",
    "include_inputs_for_metrics",
    "include_tokens_per_second",
    "jit_mode_eval",
    "logging_dir",
    "mp_parameters",
    "no_cuda",
    "overwrite_output_dir",
    "past_index",
    "per_gpu_eval_batch_size",
    "per_gpu_train_batch_size",
    "push_to_hub_model_id",
    "push_to_hub_organization",
    "push_to_hub_token",
    "ray_scope",
    "save_safetensors",
    "split_batches",
    "torchdynamo",
    "tpu_metrics_debug",
    "tpu_num_cores",
    "use_ipex",
    "use_legacy_prediction_loop",
    "use_mps_device",
    "warmup_ratio",
]
STILL_THERE = [
    "output_dir",
    "do_train",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "seed",
    "bf16",
    "fp16",
    "tf32",
    "dataloader_num_workers",
    "remove_unused_columns",
    "fsdp",
    "fsdp_config",
    "deepspeed",
    "optim",
    "report_to",
    "gradient_checkpointing",
    "length_column_name",
    "local_rank",
    "ddp_backend",
    "include_num_input_tokens_seen",
]

# flag: a value to give, and what it does (dotted: inside the value)
EXAMPLES: dict[str, tuple[str, dict[str, object]]] = {
    "adafactor": ("True", {"optim": "adafactor"}),
    "dispatch_batches": ("False", {"accelerator_config.dispatch_batches": False}),
    "split_batches": ("True", {"accelerator_config.split_batches": True}),
    "fsdp_transformer_layer_cls_to_wrap": (
        "LlamaDecoderLayer",
        {"fsdp_config.transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
    ),
    "fsdp_min_num_params": (
        "1000",
        {"fsdp_config.min_num_params": 1000, "fsdp_config.auto_wrap_policy": "SIZE_BASED_WRAP"},
    ),
    "per_gpu_train_batch_size": ("3", {"per_device_train_batch_size": 3}),
    "per_gpu_eval_batch_size": ("3", {"per_device_eval_batch_size": 3}),
    "push_to_hub_model_id": ("name", {"hub_model_id": "name"}),
    "push_to_hub_token": ("secret", {"hub_token": "secret"}),
    "include_inputs_for_metrics": ("True", {"include_for_metrics": ["inputs"]}),
    "torchdynamo": ("eager", {"torch_compile": True, "torch_compile_backend": "eager"}),
    "evaluation_strategy": ("no", {"eval_strategy": "no"}),
    "warmup_ratio": ("0.25", {"warmup_steps": 0.25}),
    "group_by_length": ("True", {"group_by_length": True}),
    "save_safetensors": ("True", {}),
    "overwrite_output_dir": ("True", {"overwrite_output_dir": True}),
    "no_cuda": ("True", {"use_cpu": True}),
    "logging_dir": ("logs", {}),
    "fp16_backend": ("auto", {}),
    "past_index": ("3", {}),
    "tpu_num_cores": ("8", {}),
}


def _parse(tmp_path: Path, *more: str) -> Any:
    common = ["--data_path", "x.json", "--output_dir", str(tmp_path), "--report_to", "none"]
    return parse_args([*common, *more])[2]


def _read(arguments: Any, dotted: str) -> object:
    value = arguments
    for name in dotted.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return getattr(value, "value", value)


def test_the_table_has_what_the_installed_version_lacks() -> None:
    installed = {one.name for one in fields(transformers.TrainingArguments)}
    assert set(FLAGS_OF_4_37 + STILL_THERE) <= installed | set(OLD_FLAGS)
    assert set(FLAGS_OF_4_37) <= set(OLD_FLAGS)


@pytest.mark.parametrize("flag", OLD_FLAGS)
def test_every_old_flag_is_taken(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    value, does = EXAMPLES.get(flag, ("something", {}))
    with caplog.at_level(logging.WARNING, "llava"):
        arguments = _parse(tmp_path, f"--{flag}", value)
    assert {name: _read(arguments, name) for name in does} == does
    asks_for_nothing = value == "auto" or OLD_FLAGS[flag].field
    assert asks_for_nothing or f"--{flag} of transformers 4: {OLD_FLAGS[flag].note}" in caplog.text


def test_old_flags_join_what_is_given(tmp_path: Path) -> None:
    file = tmp_path / "fsdp.json"
    file.write_text('{"limit_all_gathers": true, "min_num_params": 5}')
    argv = ["--fsdp_min_num_params=7", "--fsdp_config", str(file)]
    argv += ["--split_batches", "--dispatch_batches", "0"]
    got = translate_old_flags([*argv, "--optim", "sgd", "--adafactor", "True"])
    joined = json.loads(got[got.index("--fsdp_config") + 1])
    assert joined == {
        "limit_all_gathers": True,
        "min_num_params": 5,
        "auto_wrap_policy": "SIZE_BASED_WRAP",
    }
    assert json.loads(got[got.index("--accelerator_config") + 1]) == {"split_batches": True}
    assert got.count("--optim") == 1 and got[got.index("--optim") + 1] == "sgd"


def test_an_old_flag_is_known_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    shown = capsys.readouterr().out
    missing = [flag for flag in OLD_FLAGS if f"--{flag}" not in shown]
    assert not missing


def test_values_of_old_flags_are_judged_as_the_new_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--per_device_train_batch_size is 0"):
        _parse(tmp_path, "--per_gpu_train_batch_size", "0")


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("True", "all"),
        ("False", "no"),
        ("", "all"),
        ("all", "all"),
        ("non_padding", "non_padding"),
        ("no", "no"),
    ],
)
def test_tokens_seen_are_counted_as_old_and_new_command_lines_say(words: str, taken: str) -> None:
    """It was a switch in transformers 4; the parser of transformers 5 refuses the words of its own field."""
    argv = ["--data_path", "x.json", "--output_dir", "out", "--report_to", "none"]
    arguments = parse_args([*argv, "--include_num_input_tokens_seen", *words.split()])[2]
    assert arguments.include_num_input_tokens_seen == taken


def test_other_words_for_tokens_seen_are_refused() -> None:
    argv = ["--data_path", "x.json", "--output_dir", "out", "--include_num_input_tokens_seen", "maybe"]
    with pytest.raises(
        UserError, match="--include_num_input_tokens_seen is 'maybe'; expected one of no, all"
    ):
        parse_args(argv)


def test_the_note_on_tokens_per_second_says_what_replaces_it(caplog: pytest.LogCaptureFixture) -> None:
    translate_old_flags(["--include_tokens_per_second", "True"])
    assert "tokens/s in each line; --include_num_input_tokens_seen all" in caplog.text
