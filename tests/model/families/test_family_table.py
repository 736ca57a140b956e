"""Every LLM family on a small random model: it loads, sees, generates, packs, trains, saves and merges."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from table import CORE, OTHERS, Case, batch, build_case
from transformers import AutoConfig, AutoModelForCausalLM

from llava._compat import attention_of
from llava.train.setup.packing import keeps_samples_apart, use_packing
from llava.train.setup.trainable import NO_ADAPTER, find_all_linear_names
from llava.utils import UserError

ALL = [*CORE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
every_family = pytest.mark.parametrize("base_type", ALL)


@pytest.fixture(scope="module")
def case(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Build the case of a family once: `case("qwen2")`. Tests leave it as it was."""
    return cache(lambda name: build_case(name, tower, tmp_path_factory.mktemp(name)))


def _loss(model: Any, **changes: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**{**batch(), **changes}).loss


@every_family
def test_a_bare_llm_loads_whole_and_text_is_as_without_llava(
    base_type: str, case: Callable[[str], Case]
) -> None:
    one = case(base_type)
    assert not one.info["missing_keys"] and not one.info["unexpected_keys"]
    ids = batch()["input_ids"].clamp(min=3)
    with torch.no_grad():
        found, expected = one.model(input_ids=ids).logits, one.bare(input_ids=ids).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    names = one.model.state_dict()
    assert names[one.family.token_rows[0]] is not None
    assert one.model.get_submodule(one.family.head) is one.model.get_output_embeddings()
    assert one.model.get_submodule(one.family.body) is one.model.get_model()


@every_family
def test_the_loss_on_labelled_positions_is_that_over_all_logits(
    base_type: str, case: Callable[[str], Case]
) -> None:
    model = case(base_type).model
    with torch.no_grad():
        whole = model(**batch(), skip_logits=False)
    assert torch.isfinite(whole.logits).all()
    assert torch.allclose(_loss(model, skip_logits=True), whole.loss, rtol=1e-5)
    other = _loss(model, skip_logits=True, images=batch()["images"].flip(0))
    assert not torch.allclose(other, whole.loss, rtol=1e-4)  # the images matter


@every_family
def test_answers_are_those_without_a_cache_and_those_of_a_row_alone(
    base_type: str, case: Callable[[str], Case]
) -> None:
    model, whole = case(base_type).model, batch()
    del whole["labels"]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    found = model.generate(whole.pop("input_ids"), **whole, **options)
    for row, length in ((0, 15), (1, 11)):
        ids, images = batch()["input_ids"][row : row + 1, :length], whole["images"][row : row + 1]
        assert torch.equal(model.generate(ids, images=images, **options)[0], found[row])
        with torch.no_grad():  # generate() always has a cache: each next token again from all before it
            logits = model(
                torch.cat([ids, found[row : row + 1]], dim=1), images=images, use_cache=False
            ).logits
        logits[..., model.config.eos_token_id] = -torch.inf  # generate() is told not to end
        assert torch.equal(logits[0, -7:-1].argmax(-1), found[row])


@every_family
def test_packed_samples_stay_apart_or_packing_is_refused(base_type: str, case: Callable[[str], Case]) -> None:
    model = case(base_type).model
    apart, _ = keeps_samples_apart(base_type, attention_of(model.config))
    expected, before = _loss(model, skip_logits=True), attention_of(model.config)
    if not apart:
        with pytest.raises(UserError, match="--packing True would mix samples"):
            use_packing(model)
        return
    try:
        use_packing(model)
        assert torch.allclose(_loss(model, skip_logits=True), expected, rtol=1e-4)
    finally:
        model.packs_samples = False
        model.set_attn_implementation(before)


@every_family
def test_it_trains_and_comes_back_as_it_was_saved(
    base_type: str, case: Callable[[str], Case], tower: Path, tmp_path: Path
) -> None:
    one = case(base_type)
    one.model.save_pretrained(tmp_path / "before")
    assert type(AutoConfig.from_pretrained(tmp_path / "before")) is one.family.config_class
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "before", dtype=torch.float32)
    assert type(model) is one.family.model_class
    model.get_vision_tower().load_model()
    assert torch.equal(_loss(model.eval()), _loss(one.model))
    model.gradient_checkpointing_enable()
    losses = _train(model, [value for name, value in model.named_parameters() if "tower" not in name])
    assert losses[-1] < losses[0] - 0.05
    model.eval().save_pretrained(tmp_path / "after")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "after", dtype=torch.float32).eval()
    again.get_vision_tower().load_model()
    assert torch.equal(_loss(again), _loss(model))
    assert pickle.loads(pickle.dumps(type(again))) is type(again)


@every_family
def test_an_adapter_trains_the_llm_and_merges(
    base_type: str, case: Callable[[str], Case], tower: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    one = build_case(base_type, tower, tmp_path)  # of its own: an adapter changes the modules
    config = LoraConfig(
        r=2,
        target_modules=find_all_linear_names(one.model),
        exclude_modules=rf".*\.({'|'.join(NO_ADAPTER)})\..*",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(one.model, config)
    trained = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    assert trained and not any(part in name for name in trained for part in ("vision_tower", "mm_projector"))
    losses = _train(wrapped, list(trained.values()))
    assert losses[-1] < losses[0]
    adapted = _loss(wrapped.eval())
    assert torch.allclose(_loss(wrapped.merge_and_unload()), adapted, rtol=1e-4)


def _train(model: Any, weights: list[Any]) -> list[float]:
    """Train three steps; returns the losses."""
    optimizer = torch.optim.AdamW(weights, lr=5e-3)
    losses = []
    for _ in range(3):
        loss = model.train()(**batch()).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses
