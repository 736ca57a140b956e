"""Every projector through training: stage 1 and its resuming, full, LoRA; saved, looked into and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, read_config, read_tensors
from llava.model.conversion.config import hf_kind
from llava.model.tools.inspection import inspect_checkpoint
from llava.utils import UserError

# name -> tokens of the 16 patches of the tiny tower; linear and mlpNx_gelu are in the other tests
KINDS = {
    "identity": 16,
    "mlp2x_res2x_gelu": 16,
    "avg_pool2x_mlp2x_gelu": 4,
    "pixel_shuffle2x_mlp2x_gelu": 4,
    "perceiver2x_6tokens": 6,
    "qformer1x_5tokens": 5,
}
V15 = "--mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad"
STEPS = "--learning_rate 1e-3 --max_steps 2 --save_strategy steps --save_steps 1"
STAGE_1 = f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {V15} {STEPS}"
CHAT = f"--version v1 --data_path {{data}}/finetune.json {V15} {STEPS} --save_strategy no"
LORA = "--lora_enable True --lora_r 4 --lora_dropout 0.0"


def _logits(model: Any) -> torch.Tensor:
    """Compute logits of a prompt with an image."""
    model.eval()
    tower, parts = model.get_vision_tower(), 2 if "+" in model.config.mm_vision_tower else 1
    pixels = torch.linspace(-1, 1, 3 * parts * 56 * 56).reshape(1, 3 * parts, 56, 56)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([[1, 300, 301, -200, 305, 17]]), images=pixels.to(tower.dtype)
        ).logits.float()


def _check(folder: Path, base: Path | None, kind: str, trained: Any) -> None:
    """The folder records the projector, looks well, and loads to the model that was trained."""
    where = None if base is None else str(base)
    assert read_config(folder)["mm_projector_type"] == kind
    report = inspect_checkpoint(str(folder), where)
    assert report.can_chat, report.problems
    count = sum(one.numel() for one in trained.get_model().mm_projector.parameters())
    assert report.parameters.get("projector", 0) == count
    name = get_model_name_from_path(str(folder))
    _, model, _, _ = load_pretrained_model(str(folder), where, name, device="cpu", dtype=torch.float32)
    expected = _logits(trained)
    assert expected.shape[1] == 5 + KINDS[kind]
    assert torch.allclose(_logits(model), expected, atol=2e-4)
    with pytest.raises(CheckpointError, match=f"its projector is '{kind}'"):
        hf_kind(read_config(folder), str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage(kind: str, checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    base, clip = checkpoints / "vicuna-tiny", checkpoints / "tiny-clip"
    more = f"--mm_projector_type {kind}"
    if kind == "identity":  # two towers are as wide as the LLM
        more += f" --vision_tower {clip}+{clip}"
    start = ""

    def run(name: str, command: str) -> Any:
        return run_train(flags(checkpoints, training_data, tmp_path / name, f"{command} {more}"))

    if kind == "identity":
        with pytest.raises(UserError, match="--mm_projector_type identity has no weights"):
            run("first", STAGE_1)
    else:
        out = tmp_path / "llava-first"
        first = run("llava-first", STAGE_1)
        assert all("mm_projector" in one for one in first.trained)
        _check(out, base, kind, first.trainer.model)
        whole = read_tensors(out / "mm_projector.bin")
        (out / "mm_projector.bin").unlink()
        resumed = run("llava-first", f"{STAGE_1} --resume {out}/checkpoint-1")
        assert len(resumed.loss) == 1
        again = read_tensors(out / "mm_projector.bin")
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[one], again[one]) for one in whole)
        start = f" --pretrain_mm_mlp_adapter {out}/mm_projector.bin"
    full = run("llava-full", f"{CHAT}{start}")
    _check(tmp_path / "llava-full", None, kind, full.trainer.model)
    lora = run("llava-lora", f"{CHAT} {LORA}{start}")
    _check(tmp_path / "llava-lora", base, kind, lora.trainer.model)


def test_grouping_by_length_counts_the_tokens_of_a_budget(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """With the reference's 128 an image of 6 tokens would stand among the longest texts."""
    lengths = {}
    for kind in ("linear", "perceiver2x_6tokens"):
        command = f"{CHAT} --mm_projector_type {kind} --group_by_length True"
        argv = flags(checkpoints, training_data, tmp_path / kind, command)
        run = run_train([*argv, "--bf16", "True"], steps=1)
        assert run.loss[0] == pytest.approx(10, abs=2)  # random weights on a thousand tokens
        lengths[kind] = run.trainer.train_dataset.lengths
    with_images = lengths["linear"] != lengths["perceiver2x_6tokens"]
    assert set(lengths["linear"][with_images] - lengths["perceiver2x_6tokens"][with_images]) == {128 - 6}
    assert 0 < with_images.sum() < len(with_images)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--mm_projector_type perceiver1x_17tokens", "--mm_projector_type is .* gives 16 features"),
        (
            "--mm_projector_type qformer1x_4tokens --mm_patch_merge_type spatial_unpad",
            "--mm_projector_type is 'qformer1x_4tokens', whose tokens are no grid",
        ),
        ("--mm_projector_type pixel_shuffle3x_mlp2x_gelu", "--mm_projector_type is .*multiple of 3"),
        ("--mm_projector_type resampler", "Unknown mm_projector_type 'resampler'; known projectors: linear"),
        ("--mm_projector_type identity", "'identity', and the tower's features are 32 wide, the LLM's 64"),
        (
            "--mm_projector_type avg_pool2x_mlp2x_gelu "
            "--pretrain_mm_mlp_adapter {ck}/llava-tiny-pretrain/mm_projector.bin",
            "does not fit the projector 'avg_pool2x_mlp2x_gelu'",
        ),
    ],
)
def test_training_refuses(
    more: str, message: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{CHAT} {more}")
    with pytest.raises(UserError, match=message):
        run_train(argv, steps=0)
    assert not (tmp_path / "out" / "config.json").exists()
