"""The memory estimate: what ZeRO shards, what accumulation adds, quantised weights, and no trace left."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import IMAGE, llava_model, tower_folder
from torch.profiler import ProfilerActivity, profile

from llava.train.dry_run.memory_estimate import estimate_memory, image_lengths, measure_step
from llava.train.plan import RunPlan

LARGER = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 4}


def _arguments(**changes: Any) -> RunPlan:
    return RunPlan(**changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = llava_model("llama", tower_folder(tmp_path_factory.mktemp("tower")), **LARGER)
    made.get_vision_tower().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    ids = torch.randint(3, 96, (3, 120), generator=torch.Generator().manual_seed(0))
    ids[:, 4] = IMAGE
    labels = ids.masked_fill(torch.arange(120) < 60, -100)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 100:] = False
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "images": torch.zeros(3, 3, 28, 28)}


def _peak(model: Any, batch: dict[str, Any], optimizer: Any) -> int:
    """Return the most bytes that two steps hold beside the weights."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(2):
            model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [one for one in profiler.profiler.kineto_results.events() if one.name() == "[memory]"]
    return int(np.cumsum([one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]).max())


def test_zero_deals_out(model: Any, batch: dict[str, Any]) -> None:
    alone = estimate_memory(model, batch, _arguments())
    assert alone.optimizer == 2 * alone.gradients
    ranks = _arguments(world_size=4, deepspeed="config", bf16=True)
    ddp = estimate_memory(model, batch, _arguments(world_size=4))
    assert ddp.step == alone.step + alone.gradients  # its buckets
    two = estimate_memory(model, batch, ranks, stage=2)
    three = estimate_memory(model, batch, ranks, stage=3)
    assert (two.weights, two.gradients, two.optimizer) == (
        alone.weights,
        alone.gradients // 4,
        alone.optimizer // 4,
    )
    assert three.weights == alone.weights // 4
    assert estimate_memory(model, batch, ranks, stage=3, offload=True).optimizer == 0
    assert estimate_memory(model, batch, _arguments(optim="adamw_bnb_8bit")).optimizer * 4 == alone.optimizer


def test_accumulated_gradients_lie_there(model: Any, batch: dict[str, Any]) -> None:
    once = measure_step(model, batch, _arguments())
    twice = measure_step(model, batch, _arguments(gradient_accumulation_steps=8))
    gradients = sum(param.numel() * 4 for param in model.parameters() if param.requires_grad)
    assert once < twice <= once + gradients


def test_model_is_left_as_it_was(model: Any, batch: dict[str, Any]) -> None:
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    mode = model.training
    estimate = estimate_memory(model, batch, _arguments())
    after = model.state_dict(keep_vars=True)
    assert {name: id(value) for name, value in after.items()} == {
        name: one[0] for name, one in before.items()
    }
    assert all(torch.equal(value, before[name][1]) for name, value in after.items())
    assert all(param.grad is None for param in model.parameters()) and model.training is mode
    assert model.eval()(**batch).loss.isfinite() and estimate.peak > 0


def test_images_become_tokens(model: Any, batch: dict[str, Any]) -> None:
    assert image_lengths(model, batch, _arguments()) == [16, 16, 16]


def test_quantised_weights(tmp_path: Path, batch: dict[str, Any]) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model

    model = llava_model("llama", tower_folder(tmp_path / "tower"), **LARGER)
    for layer in model.get_model().layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32
                    )
                    new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False).to("cpu")
                    setattr(block, name, new)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "up_proj"])).train()
    model.enable_input_require_grads()
    estimate = estimate_memory(model, batch, _arguments())
    trained = [param for param in model.parameters() if param.requires_grad]
    measured = _peak(model, batch, torch.optim.AdamW(trained))
    beside_weights = dataclasses.replace(estimate, weights=0).peak
    assert 0.85 * measured < beside_weights < 1.15 * measured
