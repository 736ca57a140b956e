"""llava.train.train: recorded courses of training, what trains, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_training import Run, flags, recorded, run_train
from transformers import Trainer

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights, read_config, read_tensors
from llava.train.llava_trainer import LLaVATrainer
from llava.train.plan import RunPlan
from llava.utils import UserError

RECORDED = recorded("runs.json")

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15}"
V16 = f"{CHAT} --mm_patch_merge_type spatial_unpad --learning_rate 1e-4"
STAGE_1 = (
    f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {V15} "
    "--learning_rate 1e-3 --pretrain_mm_mlp_adapter {rec}/init_projector_mlp.bin"
)
STAGE_2 = (
    f"{CHAT} --pretrain_mm_mlp_adapter {{ck}}/llava-tiny-pretrain/mm_projector.bin --learning_rate 2e-4 "
    "--group_by_modality_length True --gradient_checkpointing True"
)
START_END = (
    "--version v0 --data_path {data}/finetune.json --mm_projector_type linear --mm_use_im_start_end True "
    "--pretrain_mm_mlp_adapter {rec}/init_projector_linear.bin --learning_rate 1e-4"
)
LORA = f"{CHAT} --lora_enable True --lora_r 8 --lora_dropout 0.0 --weight_decay 0.1"
NO_FILES = "--save_strategy no"


def _compare_course(run: Run, want: dict[str, Any], steps: int) -> None:
    assert run.read[: 4 * steps] == want["order"][: 4 * steps]
    assert run.label_tokens == want["label_tokens"][:steps]
    assert run.loss == pytest.approx(want["loss"][:steps], rel=5e-3)
    assert run.grad_norm == pytest.approx(want["grad_norm"][:steps], rel=1e-2)
    assert len(run.trained) == want["trained"]


@pytest.mark.parametrize(
    ("name", "command", "base"),
    [
        ("pretrain", STAGE_1, "vicuna-tiny"),
        ("finetune", STAGE_2, "vicuna-tiny"),
        ("v16", V16, "llava-tiny-v1.6"),
        ("v0", START_END, "vicuna-tiny"),
    ],
)
def test_recorded_course(
    name: str, command: str, base: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    argv = flags(checkpoints, training_data, tmp_path / "llava-out", f"{command} {NO_FILES}", base=base)
    run = run_train(argv, order=RECORDED[name]["order"], steps=4)
    _compare_course(run, RECORDED[name], 4)
    assert run.groups == RECORDED[name]["groups"]


@pytest.mark.parametrize(
    ("name", "more", "base"),
    [
        ("groups_full_projector_lr", "--learning_rate 2e-4 --mm_projector_lr 2e-5", "vicuna-tiny"),
        ("groups_freeze_projector", "--learning_rate 1e-3 --freeze_mm_mlp_adapter True", "vicuna-tiny"),
        ("groups_freeze_backbone", "--learning_rate 1e-3 --freeze_backbone True", "vicuna-tiny"),
        ("groups_lora", "--learning_rate 2e-4 --mm_projector_lr 2e-5", "vicuna-tiny"),
        (
            "groups_v16",
            "--learning_rate 1e-4 --mm_projector_lr 1e-5 --mm_patch_merge_type spatial_unpad",
            "llava-tiny-v1.6",
        ),
    ],
)
def test_recorded_groups(
    name: str, more: str, base: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    decay = "--weight_decay 0.0" if "freeze" in name else "--weight_decay 0.1"
    command = f"{LORA if name == 'groups_lora' else CHAT} {decay} {more}"
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", command, base=base), steps=0)
    assert len(run.trained) == RECORDED[name]["trained"]
    assert sorted(run.groups) == sorted(RECORDED[name]["groups"])


def test_stage_1_writes_what_the_reference_writes(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "llava-tiny-pretrain"
    saving = "--save_strategy steps --save_steps 1 --save_total_limit 1 --max_steps 2"
    run = run_train(flags(checkpoints, training_data, out, f"{STAGE_1} {saving}"))
    names = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    folders = ("", "checkpoint-1/", "checkpoint-2/")  # the reference keeps all of them
    assert {f"{folder}{file}" for folder in folders for file in ("config.json", "mm_projector.bin")} <= names
    assert "trainer_state.json" in names
    assert not any(Path(name).name.startswith(("model", "pytorch_model")) for name in names)
    weights = read_tensors(out / "mm_projector.bin")
    assert sorted(weights) == [
        f"model.mm_projector.{i}.{part}" for i in (0, 2) for part in ("bias", "weight")
    ]
    trained = dict(run.trainer.model.named_parameters())
    assert all(torch.equal(value, trained[name]) for name, value in weights.items())
    config = read_config(out)
    assert config["tune_mm_mlp_adapter"] and config["conv_template"] == "plain"
    _, model, processor, _ = load_pretrained_model(
        str(out), str(checkpoints / "vicuna-tiny"), get_model_name_from_path(str(out)), device="cpu"
    )
    loaded = model.get_model().mm_projector.state_dict()["0.weight"]
    assert torch.allclose(loaded.float(), weights["model.mm_projector.0.weight"], atol=1e-3)
    assert processor is not None


def test_stage_2_writes_a_whole_model(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-tiny-finetuned"
    run = run_train(flags(checkpoints, training_data, out, f"{STAGE_2} --max_steps 1 {NO_FILES}"))
    weights = load_weights(out)
    stored = {name for name in weights if "vision_tower" in name}
    assert stored and all(".vision_tower.vision_tower.vision_model." in name for name in stored)
    trained = dict(run.trainer.model.named_parameters())
    assert all(torch.equal(weights[name], trained[name]) for name in run.trained)
    config = read_config(out)
    expected = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "image_aspect_ratio": "pad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_vision_select_layer": -2,
        "tokenizer_model_max_length": 512,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "mm_projector_lr": None,
        "conv_template": "v1",
    }
    assert {key: config[key] for key in expected} == expected
    assert (out / "tokenizer.model").exists()
    losses = [
        h["loss"] for h in json.loads((out / "trainer_state.json").read_text())["log_history"] if "loss" in h
    ]
    assert losses == pytest.approx(run.loss, rel=1e-3)


def test_lora_writes_adapter_and_projector(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-tiny-lora"
    run = run_train(flags(checkpoints, training_data, out, f"{LORA} --max_steps 1 {NO_FILES}"))
    assert all("lora_" in name or "mm_projector" in name for name in run.trained)
    adapter = json.loads((out / "adapter_config.json").read_text())
    blocks = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert sorted(adapter["target_modules"]) == blocks
    others = read_tensors(out / "non_lora_trainables.bin")
    parts = [f"{i}.{part}" for i in (0, 2) for part in ("bias", "weight")]
    assert sorted(others) == [f"base_model.model.model.mm_projector.{part}" for part in parts]
    model = load_pretrained_model(
        str(out), str(checkpoints / "vicuna-tiny"), get_model_name_from_path(str(out)), device="cpu"
    )[1]
    merged = model.get_model().layers[0].self_attn.q_proj.weight.float()
    layer = run.trainer.model.base_model.model.model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    assert torch.allclose(merged, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("base", "version"), [("llava-tiny-mpt", "mpt"), ("llava-tiny-v1.6-mistral", "mistral_instruct")]
)
def test_other_families_learn(
    base: str, version: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    data = f"--version {version} --data_path {{data}}/finetune.json"
    command = f"{data} --max_steps 6 --learning_rate 5e-3 {V15} {NO_FILES}"
    argv = flags(checkpoints, training_data, tmp_path / "out", command, base=base)
    run = run_train(argv, order=[0, 1, 3, 4] * 6)
    assert min(run.label_tokens) > 50
    assert run.loss[-1] < run.loss[0] - 0.5


def test_same_seed_same_course(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    """The projector starts from random values here."""
    command = f"{CHAT} --group_by_modality_length True --max_steps 2 --learning_rate 1e-3 {NO_FILES}"
    runs = [run_train(flags(checkpoints, training_data, tmp_path / n, command)) for n in "ab"]
    assert runs[0].loss == runs[1].loss and runs[0].read == runs[1].read


def test_bfloat16_keeps_trained_weights_in_float32(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    command = f"{CHAT} --max_steps 1 --learning_rate 1e-3 {NO_FILES} --bf16 True"
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", command))
    assert {p.dtype for p in run.trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert run.trainer.model.get_vision_tower().dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("command", "base", "message"),
    [
        (f"{CHAT} --freeze_backbone True --data_path /nowhere.json", "vicuna-tiny", "nowhere.json"),
        (
            f"{STAGE_1} --mm_use_im_start_end True",
            "vicuna-tiny",
            "--tune_mm_mlp_adapter with --mm_use_im_start_end",
        ),
        (f"{CHAT} --pretrain_mm_mlp_adapter /nowhere.bin", "vicuna-tiny", "/nowhere.bin is no file"),
        (
            f"{CHAT} --mm_projector_type linear --pretrain_mm_mlp_adapter {{rec}}/init_projector_mlp.bin",
            "vicuna-tiny",
            "does not fit the projector 'linear'",
        ),
    ],
)
def test_refused_in_one_sentence(
    command: str, base: str, message: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        run_train(flags(checkpoints, training_data, tmp_path / "out", command, base=base))
    assert message in str(caught.value)


def test_images_without_a_tower_are_refused(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    argv = flags(
        checkpoints, training_data, tmp_path / "out", "--version v1 --data_path {data}/finetune.json"
    )
    place = argv.index("--vision_tower")
    with pytest.raises(UserError, match="--vision_tower is missing"):
        run_train(argv[:place] + argv[place + 2 :])


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("tiny-clip", "is an image encoder"),
        ("llava-tiny-pretrain", "holds only a projector; give its base model"),
        ("llava-tiny-v1.5-lora", "holds only adapters; merge them"),
    ],
)
def test_folders_that_training_cannot_start_from(
    checkpoints: Path, training_data: Path, tmp_path: Path, base: str, message: str
) -> None:
    argv = flags(
        checkpoints,
        training_data,
        tmp_path / "out",
        "--version v1 --data_path {data}/finetune.json",
        base=base,
    )
    with pytest.raises(UserError, match=message):
        run_train(argv)


def test_llava_checkpoint_without_a_tower_is_refused(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    texts = [one for one in json.loads((training_data / "finetune.json").read_text()) if "image" not in one]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = f"--version v1 --data_path {tmp_path}/texts.json"
    argv = flags(checkpoints, training_data, tmp_path / "out", command, base="llava-tiny-v1.5")
    place = argv.index("--vision_tower")
    with pytest.raises(UserError, match="is a LLaVA checkpoint"):
        run_train(argv[:place] + argv[place + 2 :])


def test_going_on_from_a_llava_checkpoint(
    checkpoints: Path, training_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tower may lie elsewhere than before; another projector is refused, other features are said."""
    shutil.copytree(checkpoints / "llava-tiny-v1.5", tmp_path / "llava-own")
    config = json.loads((tmp_path / "llava-own" / "config.json").read_text())
    moved = {**config, "mm_vision_tower": "/gone/clip"}
    (tmp_path / "llava-own" / "config.json").write_text(json.dumps(moved))
    common = "--version v1 --data_path {data}/finetune.json --mm_projector_type"
    more = ["--model_name_or_path", str(tmp_path / "llava-own"), "--dry_run", "True"]

    def train_on(rest: str) -> None:
        run_train([*flags(checkpoints, training_data, tmp_path / "out", f"{common} {rest}"), *more])

    with pytest.raises(UserError, match="projector of type mlp2x_gelu, --mm_projector_type is linear"):
        train_on("linear")
    with caplog.at_level("WARNING", logger="llava"):
        train_on("mlp2x_gelu --mm_vision_select_layer -1")
    assert "was trained with --mm_vision_select_layer -2, this run has -1" in caplog.text


def test_a_run_that_fails_ends_its_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the error would stand on the bar's line."""
    closed = []

    def fail(*args: Any, **kwargs: Any) -> None:
        raise UserError("a loss that is not finite")

    monkeypatch.setattr(Trainer, "train", fail)
    trainer: Any = object.__new__(LLaVATrainer)
    trainer.plan = RunPlan()
    trainer.progress = SimpleNamespace(close=lambda: closed.append(True))
    with pytest.raises(UserError):
        trainer.train()
    assert closed == [True]


def test_checkpoint_without_training_state_is_not_resumed(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints / "llava-tiny-pretrain", tmp_path / "out" / "checkpoint-3")
    with pytest.raises(UserError, match="checkpoint-3: it holds weights, but no trainer_state.json"):
        run_train(flags(checkpoints, training_data, tmp_path / "out", STAGE_1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "file"),
    [
        (STAGE_1, "mm_projector.bin"),
        (STAGE_2, "model.safetensors"),
        (f"{LORA} --lora_dropout 0.1 --learning_rate 1e-3", "adapter_model.safetensors"),
    ],
)
def test_resumed_run_equals_an_uninterrupted_one(
    command: str, file: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    saving = f"{command} --save_strategy steps --save_steps 3 --save_total_limit 1 --max_steps 6"
    whole = run_train(flags(checkpoints, training_data, tmp_path / "whole", saving))
    argv = flags(checkpoints, training_data, tmp_path / "parts", saving)
    first = run_train(argv, steps=3)
    second = run_train(argv)
    assert first.loss + second.loss == whole.loss
    a, b = (read_tensors(tmp_path / name / file) for name in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_public_name_of_the_reference_is_here() -> None:
    from llava.train import (
        llama_flash_attn_monkey_patch,
        llama_xformers_attn_monkey_patch,
        llava_trainer,
        train,
    )

    names = """rank0_print local_rank IS_TOKENIZER_GREATER_THAN_0_14
        ModelArguments DataArguments TrainingArguments maybe_zero_3 get_peft_state_maybe_zero_3
        get_peft_state_non_lora_maybe_zero_3
        get_mm_adapter_state_maybe_zero_3 find_all_linear_names safe_save_model_for_hf_trainer
        smart_tokenizer_and_embedding_resize _tokenize_fn _mask_targets _add_speaker_and_signal
        preprocess_multimodal preprocess_llama_2 preprocess_v1 preprocess_mpt preprocess_plain preprocess
        LazySupervisedDataset DataCollatorForSupervisedDataset make_supervised_data_module train
        conversation_lib LLaVATrainer tokenizer_image_token LlavaLlamaForCausalLM LlavaConfig"""
    assert [name for name in names.split() if not hasattr(train, name)] == []
    assert set(names.split()) <= set(train.__all__)  # what a star import takes
    trainer_names = """maybe_zero_3 get_mm_adapter_state_maybe_zero_3 split_to_even_chunks
        LengthGroupedSampler get_modality_length_grouped_indices get_length_grouped_indices LLaVATrainer"""
    assert [name for name in trainer_names.split() if not hasattr(llava_trainer, name)] == []
    assert llama_flash_attn_monkey_patch.replace_llama_attn_with_flash_attn() == "flash_attention_2"
    assert llama_xformers_attn_monkey_patch.replace_llama_attn_with_xformers_attn() == "sdpa"
