"""What one run writes and the next reads, with flags left out; flags that cannot work here."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train
from test_written_folders import logits_of
from video_data import record, write_media

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import read_config
from llava.train import args, build, checks
from llava.train.args import parse_args
from llava.train.checkpointing.folders import publish
from llava.train.checkpointing.manifest import make_manifest, other_weights
from llava.utils import UserError

PLAIN = "--mm_use_im_patch_token False --max_steps 1 --save_strategy no --learning_rate 1e-1"
STAGE_1 = f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {PLAIN}"
STAGE_2 = (
    "--version v1 --data_path {data}/finetune.json --max_steps 1 --save_strategy no --learning_rate 1e-1"
)
LORA = "--lora_enable True --lora_r 4 --lora_alpha 8"


@pytest.fixture(scope="module")
def stage_1(checkpoints: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector that was trained on features of larger images, with an image_newline."""
    out = tmp_path_factory.mktemp("stage_1")
    tiles = (
        "--mm_patch_merge_type spatial_unpad --image_aspect_ratio anyres --image_grid_pinpoints [[84,168]]"
    )
    more = f"{STAGE_1} --mm_projector_type mlp2x_gelu --mm_vision_resolution 84 {tiles}"
    run_train(flags(checkpoints, training_data, out, more))
    return out / "mm_projector.bin"


def _without(argv: list[str], flag: str) -> list[str]:
    at = argv.index(flag)
    return [*argv[:at], *argv[at + 2 :]]


@pytest.mark.slow
def test_stage_2_takes_what_it_does_not_name_from_stage_1(
    stage_1: Path, checkpoints: Path, training_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = flags(
        checkpoints, training_data, tmp_path / "out", f"{STAGE_2} --pretrain_mm_mlp_adapter {stage_1}"
    )
    with caplog.at_level(logging.INFO, "llava"):
        run_train(_without(argv, "--mm_vision_select_layer"))
    assert f"taken from the stage 1 of {stage_1}, since no flag says otherwise: " in caplog.text
    first, second = read_config(stage_1.parent), read_config(tmp_path / "out")
    for name in ("mm_projector_type", "mm_vision_select_layer", "mm_vision_resolution"):
        assert second[name] == first[name]
    assert second["mm_use_im_patch_token"] is False
    assert f"image_newline of {stage_1} is left out, --mm_patch_merge_type is flat" in caplog.text


def test_other_features_than_those_of_stage_1_are_told(
    stage_1: Path, checkpoints: Path, training_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = f"{STAGE_2} --pretrain_mm_mlp_adapter {stage_1} --mm_vision_resolution 56"
    model_args, _, _ = parse_args(flags(checkpoints, training_data, tmp_path / "out", more))
    assert model_args.mm_vision_resolution == 56
    assert "was trained with --mm_vision_resolution 84, this run has 56" in caplog.text


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("other-tower", True),
        ("somewhere/else/tiny-clip/", False),
        ("models--us--tiny-clip/snapshots/0123abc", False),
        ("models--us--other/snapshots/0123abc", True),
        ("tiny-clip+dino", True),
    ],
)
def test_a_projector_of_another_tower_is_told(
    named: str,
    told: bool,
    stage_1: Path,
    checkpoints: Path,
    training_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The tower has the same width, and its features mean something else."""
    (tmp_path / "mm_projector.bin").write_bytes(stage_1.read_bytes())
    config = read_config(stage_1.parent) | {"mm_vision_tower": named}
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = f"{STAGE_2} --pretrain_mm_mlp_adapter {tmp_path}/mm_projector.bin"
    parse_args(flags(checkpoints, training_data, tmp_path / "out", more))
    warned = [one for one in caplog.records if one.levelname == "WARNING" and named in one.getMessage()]
    assert len(warned) == told
    if told:
        assert "was trained on the features of the tower" in warned[0].getMessage()


@pytest.mark.parametrize("base", ["llava-tiny-v1.5", "llava-tiny-v1.5-st"])
def test_a_checkpoint_of_another_tower_is_told(
    base: str, checkpoints: Path, training_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").symlink_to(checkpoints / "tiny-clip")
    argv = flags(checkpoints, training_data, tmp_path / "out", STAGE_2, base=base)
    parse_args([*argv, "--vision_tower", str(tmp_path / "other")])  # the same folder under another name
    assert "of the tower" not in caplog.text
    (tmp_path / "other").unlink()
    (tmp_path / "other").mkdir()
    parse_args([*argv, "--vision_tower", str(tmp_path / "other")])
    assert "was trained on the features of the tower" in caplog.text


@pytest.mark.parametrize("beside", [None, "[]", "{", '{"mm_projector_type": 7}', '{"model_type": "llama"}'])
def test_a_projector_without_its_settings_changes_nothing(
    beside: str | None, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    if beside is not None:
        (tmp_path / "config.json").write_text(beside)
    more = f"{STAGE_2} --pretrain_mm_mlp_adapter {tmp_path}/mm_projector.bin"
    model_args, _, _ = parse_args(flags(checkpoints, training_data, tmp_path / "out", more))
    assert model_args.mm_projector_type == "linear"


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--freeze_mm_mlp_adapter True", "--mm_tunable_parts mm_language_model"])
def test_adapters_bring_a_frozen_projector(
    more: str, stage_1: Path, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    out, base = tmp_path / "llava-lora", str(checkpoints / "vicuna-tiny")
    more = f"{STAGE_2} {LORA} {more} --pretrain_mm_mlp_adapter {stage_1} --mm_projector_type mlp2x_gelu"
    trained = run_train(flags(checkpoints, training_data, out, more)).trainer.model.eval()
    tokenizer, loaded, processor, _ = load_pretrained_model(
        str(out), base, out.name, device="cpu", dtype="float32"
    )
    expected = logits_of(trained, processor, len(tokenizer))
    assert (logits_of(loaded, processor, len(tokenizer)) - expected).abs().max() < 2e-4


# flags that are known to fail only when the run is made -> what is said
LATE = {
    "--lr_scheduler_type polynomial --warmup_ratio 0.03": (
        "--lr_scheduler_type polynomial has no steps after a warmup of 1"
    ),
    "--push_to_hub True": "--push_to_hub True: ",
}


@pytest.mark.slow
@pytest.mark.parametrize("more", LATE)
def test_what_only_a_run_can_refuse_is_one_sentence(
    more: str, checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(args, "check_hub", lambda args: None)
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{STAGE_2} {more}")
    with pytest.raises(UserError, match=LATE[more]):
        run_train(argv)


def test_fsdp_needs_processes(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{STAGE_2} --fsdp full_shard")
    with pytest.raises(UserError, match="--fsdp splits a model over processes, and this is one"):
        run_train(argv)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--mm_projector_type perceiver2x_6tokens", "--mm_projector_type perceiver2x_6tokens .* 6 features"),
        ("--mm_vision_select_feature cls_patch", "--mm_vision_select_feature cls_patch gives 17 features"),
        ("--mm_spatial_pool_stride 9 --mm_spatial_pool_mode max", "--mm_spatial_pool_stride is 9"),
    ],
)
def test_features_that_are_no_frames_are_seen_before_the_model_is_loaded(
    more: str, message: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(build, "from_pretrained", load)
    write_media(tmp_path)
    (tmp_path / "finetune.json").write_text(json.dumps([record("frames")]))
    argv = flags(checkpoints, tmp_path, tmp_path / "out", f"{STAGE_2} --video_folder {tmp_path} {more}")
    with pytest.raises(UserError, match=message):
        run_train(argv)


WORDS = [
    ("--data_path=", '--data_path is ""; expected a name, or no such flag'),
    ("--eval_data_path=", '--eval_data_path is ""'),
    ("--resume=", '--resume is ""'),
    ("--cache_dir=", '--cache_dir is ""'),
    ("--data_cache_dir=", '--data_cache_dir is ""'),
    ("--model_name_or_path=", '--model_name_or_path is ""'),
    ("--vision_tower x --pretrain_mm_mlp_adapter=", '--pretrain_mm_mlp_adapter is ""'),
    ("--optim foo", "--optim is 'foo'; expected one of adamw_torch"),
    ("--optim_args foo", "--optim_args is 'foo'; expected NAME=VALUE"),
    ("--fsdp foo", "--fsdp foo: Unknown `fsdp` option"),
    ("--lr_scheduler_type greedy", "--lr_scheduler_type greedy: "),
    ("--neftune_noise_alpha -1", "--neftune_noise_alpha is -1.0; expected a number from 0"),
    ("--vision_tower x --neftune_noise_alpha 5", "--neftune_noise_alpha 5 works on text alone"),
    ("--vision_tower x --label_smoothing_factor 0.1", "--label_smoothing_factor 0.1 works on text alone"),
    ("--torch_compile_mode foo", "--torch_compile_mode is 'foo'"),
    ("--torch_compile_backend foo", "--torch_compile_backend is 'foo'; expected one of"),
    (
        "--dataloader_persistent_workers True",
        "--dataloader_persistent_workers True needs --dataloader_num_workers above 0",
    ),
    ("--load_best_model_at_end True --save_strategy no", "--load_best_model_at_end needs an evaluation"),
    (
        "--eval_split 0.1 --metric_for_best_model foo",
        "--metric_for_best_model is 'foo'; expected one of loss",
    ),
]


@pytest.mark.parametrize(("more", "message"), WORDS)
def test_messages_name_the_flag(more: str, message: str, tmp_path: Path) -> None:
    argv = ["--data_path", "x.json", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    with pytest.raises(UserError) as caught:
        parse_args([*argv, *more.split()])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--lora_r 8", "--lora_r 8 has no effect without --lora_enable True"),
        ("--lora_r 8 --lora_enable True", ""),
        ("--shuffle_buffer 5", "--shuffle_buffer 5 has no effect without --streaming True"),
        ("--eval_steps 5", "--eval_steps 5.0 has no effect without --eval_data_path or --eval_split"),
        (
            "--vision_tower x --mm_projector_lr 1e-3 --mm_tunable_parts mm_language_model",
            "--mm_projector_lr 0.001 has no effect, the projector is frozen",
        ),
        ("--eval_steps 5 --eval_strategy steps --eval_split 0.5", ""),
    ],
)
def test_flags_without_effect_are_told(
    more: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = ["--data_path", "x.json", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    parse_args([*argv, *more.split()])
    assert message in caplog.text and ("has no effect" in caplog.text) == bool(message)


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("model.safetensors", "--tune_mm_mlp_adapter True"),
        ("pytorch_model.bin.index.json", LORA),
        ("adapter_config.json", "--tune_mm_mlp_adapter True"),
        ("adapter_model.bin", ""),
    ],
)
def test_a_model_of_another_kind_in_the_output_folder_is_refused(
    file: str, more: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=f"--output_dir .* has {file} of another model"):
        run_train(flags(checkpoints, training_data, tmp_path, f"{STAGE_2} {more}"))
    assert [one.name for one in tmp_path.iterdir()] == [file]


def test_no_weights_of_an_earlier_model_stay(tmp_path: Path) -> None:
    staging, target = tmp_path / "tmp-final", tmp_path / "out"
    for folder, names in (
        (target, ["config.json", "model.safetensors", "pytorch_model.bin", "notes.txt", "mm_projector.bin"]),
        (staging, ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    publish(staging, target)
    assert sorted(one.name for one in target.iterdir()) == [
        "config.json",
        "mm_projector.bin",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "notes.txt",
    ]


@pytest.mark.slow
def test_a_newline_that_trains_is_a_part_of_its_own(
    checkpoints: Path, training_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = f"{STAGE_1} --mm_projector_type mlp2x_gelu --mm_patch_merge_type spatial_unpad"
    with caplog.at_level(logging.INFO, "llava"):
        run_train(flags(checkpoints, training_data, tmp_path / "out", more), steps=0)
    parts = [one.split()[1] for one in caplog.messages if one.startswith("trains: ")]
    assert sorted(parts) == ["newline", "projector"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("=", '--eval_tasks is ""'),
        ("=foo", "--eval_tasks: there is"),
        ("=digits,digits", "--eval_tasks names digits twice"),
        ("=digits --eval_tasks_data {ck}/none", "--eval_tasks digits: "),
        ("_data {ck}/none", "--eval_tasks_data "),
        ("_limit 3", "--eval_tasks_limit 3 is about --eval_tasks, which is missing"),
        ("_steps 3", "--eval_tasks_steps 3 is about --eval_tasks"),
        ("=digits --eval_tasks_data {ck} --eval_tasks_limit 0", "--eval_tasks_limit is 0"),
    ],
)
def test_tasks_that_are_none_name_the_flag(
    tasks: str, message: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{STAGE_2} --eval_tasks{tasks}")
    with pytest.raises(UserError) as caught:
        run_train(argv)
    assert str(caught.value).startswith(message)
    assert "--data-dir" not in str(caught.value)


def test_a_folder_of_archives_is_told_from_one_of_records(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    more = f"--version v1 --data_path {tmp_path}"
    with pytest.raises(UserError, match="holds archives of samples; .* --streaming True"):
        run_train(flags(checkpoints, training_data, tmp_path / "out", more))


def test_the_base_of_a_fused_tower_is_read_once(
    checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, seen = str(checkpoints / "vicuna-tiny"), []
    read = checks.load_weights

    def watched(path: str, **kwargs: bool) -> dict[str, torch.Tensor]:
        seen.append(str(path))
        return read(path, **kwargs)

    monkeypatch.setattr(checks, "load_weights", watched)
    clip = checkpoints / "tiny-clip"
    more = f"{STAGE_2} --vision_tower {clip}+{clip}+{clip}"
    model_args, _, _ = parse_args(flags(checkpoints, training_data, tmp_path / "out", more))
    checks.check_tower_files(model_args)
    assert seen.count(base) == 1


def test_other_parts_are_told_under_the_flag_that_names_them(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    def made(more: str) -> dict[str, Any]:
        argv = flags(checkpoints, training_data, tmp_path / "out", f"{STAGE_2} {more}")
        return make_manifest(*parse_args(argv))

    tower = made("--mm_tunable_parts mm_vision_tower,mm_mlp_adapter")
    projector = made("--mm_tunable_parts mm_mlp_adapter")
    plain = made("--tune_mm_mlp_adapter True")
    parts = "--mm_tunable_parts was mm_vision_tower,mm_mlp_adapter, is mm_mlp_adapter"
    assert other_weights(tower, projector) == [parts]
    assert other_weights(projector, plain) == []  # the same weights in other words
    assert other_weights(tower, plain) == [parts.replace("is mm_mlp_adapter", "is null")]
