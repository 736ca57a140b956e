"""Settings of training in several processes: what of DeepSpeed's and FSDP's is refused, said or adapted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.integrations.deepspeed import deepspeed_optim_sched

from llava.model.checkpoints.gather import full_values, gathered
from llava.train.llava_trainer import LLaVATrainer
from llava.train.plan import RATE_FLAGS
from llava.train.setup import distributed
from llava.utils import UserError

ADAM = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
WARMUP = {"scheduler": {"type": "WarmupLR", "params": {}}}
CLIPPED = {"gradient_clipping": 1.0}


def settings(config: dict[str, Any], **changes: Any) -> SimpleNamespace:
    """Stand in for the training arguments."""
    stage = config.get("zero_optimization", {}).get("stage", 2)
    given = SimpleNamespace(config=config, is_zero3=lambda: stage == 3)
    values = {
        "deepspeed": "mine.json",
        "hf_deepspeed_config": given,
        "bits": 16,
        "lr_scheduler_type": "cosine",
        "mm_projector_lr": None,
        "mm_vision_tower_lr": None,
        "max_grad_norm": 1.0,
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize("flag", sorted(RATE_FLAGS.values()))
def test_a_rate_that_deepspeeds_optimizer_would_drop_is_refused(flag: str) -> None:
    with pytest.raises(UserError, match=rf"mine\.json.*--{flag}"):
        distributed.check_deepspeed_config(settings({**ADAM, **CLIPPED}, **{flag: 1e-5}))


def test_quantised_weights_cannot_be_split() -> None:
    config = {"zero_optimization": {"stage": 3}, **CLIPPED}
    with pytest.raises(UserError, match="--bits 4 .*zero2.json"):
        distributed.check_deepspeed_config(settings(config, bits=4))
    distributed.check_deepspeed_config(settings(CLIPPED, bits=4))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**ADAM, **CLIPPED}, "replaces --optim"),
        ({**WARMUP, **CLIPPED}, "replaces --lr_scheduler_type cosine"),
        ({}, "--max_grad_norm 1 has no effect"),
    ],
)
def test_what_replaces_a_flag_is_said(
    config: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        distributed.check_deepspeed_config(settings(config))
    assert len(caplog.records) == 1 and message in caplog.text


def test_an_optimizer_of_deepspeeds_follows_the_flags_schedule(tmp_path: Path) -> None:
    """The engine makes the scheduler while the trainer has only a stand-in for the optimizer."""
    trainer = LLaVATrainer.__new__(LLaVATrainer)  # without a model, which the schedule does not need
    trainer.args = transformers.TrainingArguments(
        str(tmp_path), lr_scheduler_type="linear", warmup_steps=2, use_cpu=True
    )
    trainer.accelerator = SimpleNamespace()
    trainer.lr_scheduler = None
    config = SimpleNamespace(config=dict(ADAM))
    weights = [torch.nn.Parameter(torch.zeros(1))]
    trainer.optimizer, trainer.lr_scheduler = deepspeed_optim_sched(trainer, config, trainer.args, 6, weights)
    optimizer = torch.optim.SGD(weights, lr=1.0)
    scheduler = trainer.lr_scheduler.lr_scheduler_callable(optimizer)
    rates = []
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_the_shipped_configs_need_no_remark(caplog: pytest.LogCaptureFixture) -> None:
    for file in sorted((Path(__file__).parents[3] / "scripts").glob("zero*.json")):
        config = {**json.loads(file.read_text()), "gradient_clipping": 1.0}  # "auto" is filled in
        with caplog.at_level(logging.WARNING):
            distributed.check_deepspeed_config(settings(config, mm_projector_lr=1e-5))
    assert not caplog.records


@pytest.mark.parametrize(
    ("fsdp", "version", "hidden"), [(True, 1, True), (True, 2, False), (False, None, False)]
)
def test_only_the_old_fsdp_has_the_tower_hidden(fsdp: bool, version: int | None, hidden: bool) -> None:
    plugin = None if version is None else {"fsdp_version": version}
    assert distributed.uses_fsdp_1(SimpleNamespace(fsdp=fsdp, fsdp_plugin_args=plugin)) is hidden


def test_fsdp_splits_by_layers_that_are_there() -> None:
    class Layer(torch.nn.Linear):
        pass

    model: Any = torch.nn.Sequential(Layer(2, 2))
    model._no_split_modules = ["Layer", "CLIPVisionTower", "CLIPVisionTowerS2"]  # as for a device map
    distributed.split_by_layers(model, SimpleNamespace(fsdp=[]))
    assert len(model._no_split_modules) == 3
    distributed.split_by_layers(model, SimpleNamespace(fsdp=["full_shard"]))
    assert model._no_split_modules == ["Layer"]


def test_ordinary_weights_are_whole_already() -> None:
    param = torch.nn.Parameter(torch.arange(4.0))
    with gathered([param], write=True), torch.no_grad():
        param[0] = 7
    values = full_values(param)
    assert values.tolist() == [7, 1, 2, 3]
    values[1] = 9
    assert param[1] == 1  # a copy
