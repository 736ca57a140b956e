"""Flags that make training faster without changing it: the fused AdamW, and torch.compile in each stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_training import Run, flags, run_train

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = (
    f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} --save_strategy no "
    "--pretrain_mm_mlp_adapter {ck}/llava-tiny-pretrain/mm_projector.bin --learning_rate 1e-3"
)
ORDER = [0, 1, 2, 3, 2, 5, 8, 11, 4, 6, 7, 9, 10, 12, 13, 14]


def _same_course(run: Run, expected: Run, near: float) -> None:
    assert len(run.loss) == len(expected.loss) > 1
    assert run.loss == pytest.approx(expected.loss, rel=near)
    assert run.grad_norm == pytest.approx(expected.grad_norm, rel=10 * near)


def test_fused_adamw_gives_the_numbers_of_the_plain_one(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    runs = []
    for name in ("adamw_torch", "adamw_torch_fused"):
        command = f"{CHAT} --max_steps 4 --weight_decay 0.1 --optim {name}"
        runs.append(run_train(flags(checkpoints, training_data, tmp_path / name, command), order=ORDER))
    plain, fused = runs
    assert fused.trainer.optimizer.param_groups[0]["fused"] is True
    assert not plain.trainer.optimizer.param_groups[0]["fused"]
    _same_course(fused, plain, 1e-6)
    assert fused.loss[-1] != fused.loss[0]
    others = dict(plain.trainer.model.named_parameters())
    for name, value in fused.trainer.model.named_parameters():
        assert value.detach().allclose(others[name].detach(), rtol=1e-5, atol=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "",
        "--tune_mm_mlp_adapter True",
        "--lora_enable True --lora_r 4 --lora_dropout 0",
        "--packing True",
        "--gradient_checkpointing True",
    ],
)
def test_a_compiled_run_has_the_course_of_a_plain_one(
    more: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """The graphs are traced and differentiated; code for them, which takes minutes, is not generated."""
    runs = []
    for compiled in ("", "--torch_compile True --torch_compile_backend aot_eager"):
        argv = flags(
            checkpoints,
            training_data,
            tmp_path / f"{bool(compiled)}",
            f"{CHAT} --max_steps 2 {compiled} {more}",
        )
        runs.append(run_train(argv, order=ORDER))
    _same_course(runs[1], runs[0], 1e-5)
