"""The factory of LLM families: names under which it is found, what it refuses, what it leaves to others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    Gemma4TextConfig,
    GPT2Config,
    Qwen2Config,
    Qwen2ForCausalLM,
    __version__,
)
from warming import python

from llava.model.checkpoints.errors import CheckpointError
from llava.model.language_model import factory
from llava.model.language_model.probing import fault_of, small_config, small_model
from llava.model.language_model.registry import (
    FAMILIES,
    Family,
    family_of,
    find_family,
    kernels_of,
    llava_config,
    register_family,
)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Takes out of the registry what a test has put there."""
    before = list(FAMILIES)
    yield
    FAMILIES[:] = before


NAMES = {
    "bare": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "own": {"model_type": "llava_qwen2", "architectures": ["LlavaQwen2ForCausalLM"]},
    "LLaVA-NeXT's": {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]},
    "OneVision's": {"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"]},
    "without a class": {"model_type": "llava_qwen"},
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_one_family(kind: str) -> None:
    family = family_of({**NAMES[kind], "mm_vision_tower": "x"})
    assert (family.base_type, family.llava_type) == ("qwen2", "llava_qwen2")
    assert family.model_class.__name__ == "LlavaQwen2ForCausalLM"
    assert family.llm_class is Qwen2ForCausalLM
    assert family_of(NAMES["own"]) is family  # made once


@pytest.mark.parametrize(
    ("model_type", "base_type"),
    [
        ("llava_gemma", "gemma"),
        ("llava_mixtral", "mixtral"),
        ("llava_qwen_moe", "qwen2_moe"),
        ("gpt-sw3", "gpt2"),
        pytest.param(
            "internlm3",
            "internlm3",
            marks=pytest.mark.skipif("internlm3" not in CONFIG_MAPPING, reason="this transformers lacks it"),
        ),
    ],
)
def test_other_names(model_type: str, base_type: str) -> None:
    assert factory.family_for(model_type).base_type == base_type


def test_families_that_are_written_down_are_not_made() -> None:
    for name in ("llama", "llava_llama", "llava_mpt", "mistral"):
        family = family_of({"model_type": name})
        assert not family.made and family.model_class.__module__.endswith(f"llava_{family.base_type}")


def test_auto_config_makes_it(tmp_path: Path) -> None:
    content = {**small_config(Qwen2Config).to_dict(), **NAMES["LLaVA-NeXT's"], "mm_vision_tower": "x"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config).__name__ == "LlavaQwen2Config" and isinstance(config, Qwen2Config)
    assert config.model_type == "llava_qwen2" and config.mm_vision_tower == "x"


def test_classes_are_found_by_name() -> None:
    program = (
        "import pickle, sys, llava.model; "
        "cls = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "from transformers import AutoConfig; "
        "print(cls.__name__, AutoConfig.for_model('llava_gemma').model_type)"
    )
    import pickle

    pickled = pickle.dumps(family_of(NAMES["own"]).model_class).hex()
    done = subprocess.run(
        [python(), "-c", program, pickled], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["LlavaQwen2ForCausalLM", "llava_gemma"]
    with pytest.raises(AttributeError, match="LlavaNoSuchForCausalLM"):
        factory.LlavaNoSuchForCausalLM  # noqa: B018


REFUSED = {
    "bert": "its attention is not causal",
    "bart": "half of an encoder and decoder",
    "falcon_h1": "differ from those from token ids",
    "rwkv": "it reads padding",
    "openai-gpt": "takes no embeddings",
    "llama4_text": "does not tell its head from the rest",
    "blt": "made of several models",
    "plbart": "half of an encoder and decoder",
    "lfm2_moe": "could not be tried out",
}


@pytest.mark.parametrize("base_type", REFUSED)
def test_what_cannot_be_a_llava_is_refused(base_type: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of({"model_type": base_type}, "here")
    told = str(caught.value)
    assert REFUSED[base_type] in told and told.startswith("here: ") and repr(base_type) in told
    assert "\n" not in told and "own (docs/extending.md)" in told
    assert find_family(base_type) is None


def test_second_embeddings_are_refused(tmp_path: Path) -> None:
    small = {**small_config(Gemma4TextConfig).to_dict(), "hidden_size_per_layer_input": 8}
    told = "here is of type 'llava_gemma4_text' with hidden_size_per_layer_input 8: each of its layers reads"
    with pytest.raises(CheckpointError, match=told):
        llava_config(small, "here")
    default = {name: value for name, value in small.items() if name != "hidden_size_per_layer_input"}
    with pytest.raises(CheckpointError, match="hidden_size_per_layer_input 256"):
        llava_config(default, "here")
    family = factory.family_for("gemma4_text")
    with pytest.raises(CheckpointError, match="hidden_size_per_layer_input 8"):
        family.model_class(family.config_class(**small))


def test_a_trial_finds_each_fault() -> None:
    """A model with a planted fault, and the sentence for it."""
    model: Any = small_model("qwen2")
    assert fault_of(model) == ""
    own = type(model).forward

    def planted(change: Any) -> str:
        class Faulty(type(model)):  # type: ignore[misc]
            def forward(self, **kwargs: Any) -> Any:
                return change(kwargs, own(self, **kwargs))

        model.__class__ = Faulty
        try:
            return fault_of(model)
        finally:
            model.__class__ = Qwen2ForCausalLM

    def embeds(kwargs: Any, output: Any) -> Any:
        output.logits = output.logits + (0.1 if kwargs.get("inputs_embeds") is not None else 0)
        return output

    def looks_ahead(kwargs: Any, output: Any) -> Any:
        output.logits = output.logits + output.logits[:, -1:].mean()
        return output

    def forgets(kwargs: Any, output: Any) -> Any:
        if kwargs.get("past_key_values") is not None and output.logits.shape[1] == 1:
            output.logits = -output.logits
        return output

    assert "from embeddings differ" in planted(embeds)
    assert "not causal" in planted(looks_ahead)
    assert "with a cache differ" in planted(forgets)


def test_an_entry_of_somebody_goes_before_one_that_is_made() -> None:
    made = family_of({"model_type": "gpt2"})
    assert made.made and made.positions == "n_positions" and made.embedding == "wte"

    class MyConfig(GPT2Config):
        model_type = "my_llava_gpt2"

    class MyForCausalLM(made.model_class):  # type: ignore[misc, name-defined]
        config_class = MyConfig

    mine = Family("gpt2", MyConfig, MyForCausalLM)
    register_family(mine)
    assert family_of({"model_type": "gpt2"}) is mine
    assert family_of({"model_type": "llava_gpt2"}) is made


@pytest.mark.skipif(Version(__version__) < Version("5.23"), reason="older ones offer sdpa for Gemma 2")
def test_kernels_are_what_the_llm_has() -> None:
    family = family_of({"model_type": "gemma2"})
    assert "sdpa" not in family.attention and "eager" in family.attention
    assert kernels_of("llava_gemma2") == family.attention == kernels_of("gemma2")


def test_making_leaves_random_numbers_and_dtype_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert factory.family_for("olmo2").base_type == "olmo2"
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(torch.rand(3), expected)
