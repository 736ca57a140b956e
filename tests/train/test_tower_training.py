"""Training the vision tower: what trains at which rate, gradients, what is written and loaded again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import Run, flags, run_train

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import is_recomputed, load_weights, read_config, read_tensors
from llava.train.llava_trainer import LLaVATrainer
from llava.utils import UserError

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} --learning_rate 2e-4"
FULL = f"{CHAT} --pretrain_mm_mlp_adapter {{ck}}/llava-tiny-pretrain/mm_projector.bin"
LORA = f"{FULL} --lora_enable True --lora_r 8 --lora_alpha 16"
STAGE_1 = (
    f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {V15} "
    "--learning_rate 1e-3"
)
UNFREEZE = "--unfreeze_mm_vision_tower True --mm_vision_tower_lr 1e-3"
TEXTS = [2, 5, 8, 11]  # samples without image


def _gradients_of(argv: Sequence[str], *, order: Sequence[int]) -> tuple[Run, list[dict[str, float]]]:
    """Run train(); returns for every micro-batch the largest gradient of each tower weight that has one."""
    seen: list[dict[str, float]] = []
    step = LLaVATrainer.training_step

    def watch(self: Any, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(self, model, *args, **kwargs)
        tower = (pair for pair in model.named_parameters() if "vision_tower" in pair[0])
        seen.append({name: float(p.grad.abs().max()) for name, p in tower if p.grad is not None})
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LLaVATrainer, "training_step", watch)
        return run_train(argv, order=order), seen


def _parts(run: Run) -> set[str]:
    keys = {"lora_": "adapters", "mm_projector": "projector", "vision_tower": "tower"}
    return {next((part for key, part in keys.items() if key in name), "LLM") for name in run.trained}


@pytest.mark.parametrize("unfreeze", [False, True])
@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (FULL, {"LLM", "projector"}),
        (f"{FULL} --freeze_backbone True --freeze_mm_mlp_adapter True", {"LLM"}),  # its head
        (LORA, {"adapters", "projector"}),
        (STAGE_1, {"projector"}),
    ],
)
def test_flags_say_what_trains(
    command: str, parts: set[str], unfreeze: bool, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    more = f"{command} --mm_projector_lr 5e-4 --weight_decay 0.1 {UNFREEZE if unfreeze else ''}"
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", more), steps=0)
    assert _parts(run) == parts | ({"tower"} if unfreeze else set())
    model = run.trainer.model
    tower = {id(p) for name, p in model.named_parameters() if "vision_tower" in name and p.requires_grad}
    projector = {id(p) for name, p in model.named_parameters() if "mm_projector" in name and p.requires_grad}
    rates: dict[int, float] = {}
    for group in run.trainer.optimizer.param_groups:
        rates.update({id(p): group.get("initial_lr", group["lr"]) for p in group["params"]})
    assert len(rates) == len(run.trained) == sum(len(g["params"]) for g in run.trainer.optimizer.param_groups)
    assert {rates[one] for one in tower} == ({1e-3} if unfreeze else set())
    assert {rates[one] for one in projector} == ({5e-4} if "projector" in parts else set())
    others = {rates[one] for one in rates.keys() - tower - projector}
    assert others <= {run.trainer.args.learning_rate}


@pytest.mark.parametrize("more", ["", "--gradient_checkpointing True", "--bf16 True"])
@pytest.mark.parametrize("command", [FULL, LORA, STAGE_1])
def test_tower_learns_when_asked(
    command: str, more: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """A batch of images, one of texts only, and a last one that is not full."""
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{command} {UNFREEZE} {more}")
    run, seen = _gradients_of([*argv, "--save_strategy", "no"], order=[0, 1, 3, 4, *TEXTS, 6])
    model = run.trainer.model
    trained = {name for name in run.trained if "vision_tower" in name}
    assert [set(one) for one in seen] == [trained] * 3
    assert min(seen[0].values()) >= 0 and sum(v > 0 for v in seen[0].values()) > len(trained) / 2
    assert max(seen[2].values()) > 0
    if command != STAGE_1:  # its data has no texts
        assert max(seen[1].values()) == 0
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    names = {name for name, _ in model.named_parameters() if "vision_tower" in name}
    behind = {name for name in names if "post_layernorm" in name or ".layers.3." in name}
    assert behind and trained == names - behind  # select_layer is -2


def test_frozen_tower_gets_no_gradients(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{FULL} --max_steps 1")
    run, seen = _gradients_of([*argv, "--save_strategy", "no"], order=[0, 1, 3, 4])
    assert seen == [{}]
    start = load_weights(checkpoints / "tiny-clip")
    tower = run.trainer.model.get_vision_tower().vision_tower.state_dict()
    assert all(torch.equal(value, _own_weight(start, name)) for name, value in tower.items())


def _own_weight(own: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Return the weight of a tower's own files that has a tower's state name."""
    return next(value for stored, value in own.items() if stored.endswith(name)).float()


@pytest.mark.parametrize("command", [FULL, LORA, STAGE_1])
def test_trained_tower_is_written_and_loaded(
    command: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    kind = "lora" if command == LORA else "tiny"
    out = tmp_path / f"llava-{kind}-tower"
    argv = flags(checkpoints, training_data, out, f"{command} {UNFREEZE} --max_steps 2 --save_steps 1")
    run = run_train(argv)
    trained = {name: p for name, p in run.trainer.model.named_parameters() if "vision_tower" in name}
    config = read_config(out)
    assert config["unfreeze_mm_vision_tower"] is True and config["mm_vision_tower_lr"] == 1e-3
    if command == LORA:
        stored = read_tensors(out / "non_lora_trainables.bin")
        assert {name for name in stored if "vision_tower" in name} == set(run.trained) & set(trained)
    else:
        stored = load_weights(out)
        assert {name for name in stored if "vision_tower" in name} >= set(trained)
        assert all(name.startswith("model.vision_tower.vision_tower.vision_model.") for name in trained)
    assert all(torch.equal(value, trained[name]) for name, value in stored.items() if name in trained)
    for folder in (out, out / "checkpoint-2"):
        base = str(checkpoints / "vicuna-tiny") if command == LORA else None
        _, model, _, _ = load_pretrained_model(
            str(folder), base, get_model_name_from_path(str(folder)), device="cpu", dtype=torch.float32
        )
        states = {n: p for n, p in model.state_dict().items() if "vision_tower" in n}
        loaded = {name: p for name, p in states.items() if not is_recomputed(name)}
        assert loaded.keys() == {name.removeprefix("base_model.model.") for name in trained}
        assert all(
            torch.equal(loaded[name.removeprefix("base_model.model.")], p) for name, p in trained.items()
        )
    own = load_weights(checkpoints / "tiny-clip")
    patches = next(p for name, p in trained.items() if "patch_embedding" in name)
    start = next(value for name, value in own.items() if "patch_embedding" in name)
    assert not torch.equal(patches, start)


def test_trained_tower_goes_on_training_from_its_checkpoint(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """The second stage starts from the tower of the first, whether it trains the tower or not."""
    first, second = tmp_path / "llava-first", tmp_path / "llava-second"
    more = f"--max_steps 1 {UNFREEZE} --save_strategy no"
    trained = run_train(flags(checkpoints, training_data, first, f"{STAGE_1} {more}")).trainer.model
    command = f"{CHAT} --max_steps 1 --save_strategy no"
    model = run_train(flags(checkpoints, training_data, second, command, base=str(first))).trainer.model
    want = trained.get_vision_tower().state_dict()
    assert all(
        torch.equal(value, want[name]) for name, value in model.get_vision_tower().state_dict().items()
    )
    assert read_config(second)["unfreeze_mm_vision_tower"] is True  # the tower differs from its own files


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--mm_vision_tower_lr 1e-5", "needs --unfreeze_mm_vision_tower"),
        (f"--tune_mm_mlp_adapter True --bits 4 {UNFREEZE}", "saves the whole model"),
    ],
)
def test_flags_without_effect_are_refused(
    more: str, message: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run_train(flags(checkpoints, training_data, tmp_path / "out", f"{CHAT} {more}"))
