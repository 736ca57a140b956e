"""Every registered family, and the one of docs/extending.md: what the rest of the library relies on."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from llava.model.checkpoints.files import CheckpointError
from llava.model.conversion.config import hf_kind
from llava.model.language_model import family as family_module
from llava.model.language_model.registry import FAMILIES, Family, find_family, llava_config, register_family
from llava.train.setup.packing import keeps_samples_apart
from llava.train.setup.trainable import find_all_linear_names

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
DOCUMENTED = "qwen2"
TYPES = [*(one.base_type for one in FAMILIES), DOCUMENTED]


@pytest.fixture(scope="module", autouse=True)
def documented() -> Iterator[None]:
    """The example of the documentation, run; taken out of the registry afterwards."""
    before = list(FAMILIES)
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None and code[1].count("\n") <= 45
    module = types.ModuleType("documented_family")
    exec(compile(code[1], str(PAGE), "exec"), module.__dict__)
    yield
    FAMILIES[:] = before


@pytest.fixture
def make(tower: Path) -> Callable[[str], tuple[Family, Any]]:
    """Build a tiny LLaVA of a registered family: `make("llama")` gives its entry and the model."""

    def build(base_type: str) -> tuple[Family, Any]:
        entry = find_family(base_type)
        assert entry is not None
        like = base_type if base_type in tiny.FAMILIES else "llama"
        fields = tiny.llava_config(like, tower).to_dict()
        fields.pop("architectures", None)
        torch.manual_seed(1)
        model = entry.model_class(llava_config({**fields, "model_type": base_type}))
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "vision_tower" not in name:
                    value.add_(torch.randn_like(value) * 0.15)
        model.get_vision_tower().load_model()
        return entry, model.eval()

    return build


def _batch() -> dict[str, Any]:
    """Two rows of different length with an image each, padded on the right."""
    ids = torch.zeros(2, 13, dtype=torch.long)
    ids[0] = torch.cat([tiny.token_ids(3), torch.tensor([tiny.IMAGE]), tiny.token_ids(9, 1)])
    ids[1, :9] = torch.cat([tiny.token_ids(2, 2), torch.tensor([tiny.IMAGE]), tiny.token_ids(6, 3)])
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = ids.masked_fill((mask == 0) | (ids == tiny.IMAGE), -100)
    labels[:, :5] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "images": tiny.pixels(2, 3, 28, 28)}


@pytest.mark.parametrize("base_type", TYPES)
def test_loss_is_that_over_all_logits(base_type: str, make: Callable[..., Any]) -> None:
    _, model = make(base_type)
    with torch.no_grad():
        expected, found = model(**_batch()), model(**_batch(), skip_logits=True)
    assert torch.allclose(found.loss, expected.loss, rtol=1e-5)
    assert expected.logits.shape[1] == 12 + tiny.PATCHES


@pytest.mark.parametrize("base_type", TYPES)
def test_a_row_of_a_batch_is_the_row_alone(base_type: str, make: Callable[..., Any]) -> None:
    _, model = make(base_type)
    batch = _batch()
    with torch.no_grad():
        both = model(**batch, skip_logits=True)
        for row, length in ((0, 13), (1, 9)):
            alone = {name: value[row : row + 1] for name, value in batch.items()}
            short = {name: alone[name][:, :length] for name in ("input_ids", "attention_mask", "labels")}
            one = model(**short, images=alone["images"], skip_logits=True)
            assert torch.allclose(one.loss_sums[0], both.loss_sums[row], rtol=1e-4)
            assert one.loss_counts[0] == both.loss_counts[row]


@pytest.mark.parametrize("base_type", TYPES)
def test_names_of_the_entry_are_those_of_the_model(base_type: str, make: Callable[..., Any]) -> None:
    entry, model = make(base_type)
    weights = model.state_dict()
    assert weights[entry.token_rows[0]] is not None and entry.final_norm_weight in weights
    assert model.get_submodule(entry.head) is model.get_output_embeddings()
    assert getattr(model, entry.body) is model.get_model()
    assert getattr(model.config, entry.positions) == 512
    names = find_all_linear_names(model)
    assert names and entry.head not in names
    blocks = {type(module).__name__ for module in model.get_model().modules()}
    assert blocks & set(model._no_split_modules)


@pytest.mark.parametrize("base_type", TYPES)
def test_saved_and_loaded_it_is_the_same(base_type: str, make: Callable[..., Any], tmp_path: Path) -> None:
    entry, model = make(base_type)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(again) is entry.model_class
    again.get_vision_tower().load_model()
    with torch.no_grad():
        assert torch.allclose(again(**_batch()).logits, model(**_batch()).logits, atol=1e-6)


@pytest.mark.parametrize("base_type", TYPES)
def test_lora_trains_the_llm_only(base_type: str, make: Callable[..., Any]) -> None:
    from peft import LoraConfig, get_peft_model

    _, model = make(base_type)
    names = find_all_linear_names(model)
    config = LoraConfig(r=2, target_modules=names, exclude_modules=r".*\.(vision_tower|mm_projector)\..*")
    wrapped = get_peft_model(model, config).train()
    wrapped(**_batch()).loss.backward()
    trained = [name for name, value in wrapped.named_parameters() if value.grad is not None]
    assert trained and all("lora_" in name and "vision_tower" not in name for name in trained)


@pytest.mark.parametrize("base_type", TYPES)
def test_the_entry_says_of_packing_what_a_trial_says(base_type: str) -> None:
    entry = find_family(base_type)
    assert entry is not None
    apart, why = keeps_samples_apart(base_type, "sdpa" if "sdpa" in entry.attention else "eager")
    assert entry.packable is apart, why


@pytest.mark.parametrize("base_type", TYPES)
def test_it_exports_or_is_refused_in_a_sentence(base_type: str, make: Callable[..., Any]) -> None:
    entry, model = make(base_type)
    config = {**model.config.to_dict(), "model_type": entry.llava_type}
    if entry.exports:
        assert hf_kind(config, "here") == "llava"
    else:
        with pytest.raises(CheckpointError, match="which transformers' LLaVA classes cannot hold"):
            hf_kind(config, "here")


def test_a_taken_model_type_is_refused() -> None:
    entry = find_family("llama")
    other = find_family("mpt")
    assert entry is not None and other is not None
    before = list(FAMILIES)
    with pytest.raises(ValueError, match="LlavaLlamaForCausalLM has taken; choose another model_type"):
        register_family(Family("llama", other.config_class, other.model_class))
    assert before == FAMILIES
    register_family(entry)  # the same again changes nothing
    assert sorted(one.base_type for one in FAMILIES) == sorted(one.base_type for one in before)
    assert family_module.FAMILIES is FAMILIES
