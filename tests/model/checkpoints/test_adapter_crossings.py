"""Adapters as other tools leave them: beside whole weights, without a config, on the wrong base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import edit_config, refuse
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    get_peft_model,
)

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights, save_tensors
from llava.model.conversion.to_hf import to_hf
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.tools.extract import merge_lora
from llava.model.tools.inspection import inspect_checkpoint

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
WHOLE, LORA = "llava-tiny-v1.5-st", "llava-tiny-v1.5-lora"


def copy_adapter(source: Path, target: Path) -> Path:
    for name in ADAPTER:
        shutil.copy(source / name, target)
    return target


@pytest.fixture
def by_peft(checkpoints: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """An adapter that peft alone has put on a whole LLaVA and saved, and the merged weight of one layer."""
    model = LlavaLlamaForCausalLM.from_pretrained(checkpoints / WHOLE, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.2)
    wrapped.save_pretrained(tmp_path / "by-peft")
    assert not (tmp_path / "by-peft" / "config.json").exists()
    return tmp_path / "by-peft", wrapped.merge_and_unload().model.layers[0].self_attn.q_proj.weight.detach()


@pytest.mark.parametrize("name", [WHOLE, "vicuna-tiny"])
def test_whole_weights_beside_an_adapter_are_refused(
    copy: Callable[[str], Path], checkpoints: Path, name: str
) -> None:
    """transformers would put the adapter on, although it may be merged into the weights already."""
    folder = copy_adapter(checkpoints / LORA, copy(name))
    refuse(folder, "holds a whole model", "and an adapter (adapter_config.json)", "folder of its own")


def test_a_base_beside_an_adapter_is_refused(
    copy: Callable[[str], Path], checkpoints: Path, tmp_path: Path
) -> None:
    base = copy_adapter(checkpoints / LORA, copy("vicuna-tiny"))
    for name in (LORA, "llava-tiny-pretrain"):
        refuse(checkpoints / name, base, "holds a whole model", base=base)


@pytest.mark.parametrize("name", [LORA, "llava-tiny-pretrain"])
def test_a_base_that_needs_a_base_is_refused(checkpoints: Path, name: str) -> None:
    base = checkpoints / name
    kind = "an adapter" if name == LORA else "a projector"
    refuse(checkpoints / LORA, f"its base {base} is only {kind}", "give a whole model", base=base)
    assert inspect_checkpoint(str(checkpoints / LORA), str(base)).problems


def test_an_adapter_of_peft_on_a_llava_sees_images(
    by_peft: tuple[Path, torch.Tensor], checkpoints: Path, tmp_path: Path
) -> None:
    folder, merged = by_peft
    base = str(checkpoints / WHOLE)
    _, model, processor, _ = load_pretrained_model(str(folder), base, "x", device="cpu", dtype="float32")
    assert processor is not None and isinstance(model, LlavaLlamaForCausalLM)
    assert torch.allclose(model.model.layers[0].self_attn.q_proj.weight, merged, atol=1e-6)
    report = inspect_checkpoint(str(folder), base)
    assert report.kind == "lora" and not report.problems and report.tower is not None
    merge_lora(str(folder), base, str(tmp_path / "merged"), "x", dtype="float32")
    again = load_weights(tmp_path / "merged")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(again, merged, atol=1e-6)
    found = to_hf(str(folder), tmp_path / "hf", base=base, conv_mode="llava_v1")
    assert found is not None and found.passed


def test_weights_that_the_config_has_no_adapters_for_are_named(
    copy: Callable[[str], Path], vicuna: Path
) -> None:
    folder = copy(LORA)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["q_proj"]}))
    refuse(folder, "has no place for", "lora_A", base=vicuna)
    assert inspect_checkpoint(str(folder), str(vicuna)).problems


def test_weights_of_no_module_are_named(copy: Callable[[str], Path], vicuna: Path) -> None:
    folder = copy(LORA)
    weights = load_weights(folder / ADAPTER[1])
    save_tensors({**weights, "base_model.model.model.nothing.weight": torch.zeros(2)}, folder / ADAPTER[1])
    refuse(folder, "has no place for", "model.nothing", base=vicuna)


WHOLE_KINDS: dict[str, Callable[[], PeftConfig]] = {
    "rows of tokens": lambda: LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2]),
    "an embedding": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "biases": lambda: LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
    "LoHa": lambda: LoHaConfig(target_modules=["q_proj"]),
    "IA3": lambda: IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "OFT": lambda: OFTConfig(target_modules=["q_proj"], oft_block_size=8, r=0),
    "AdaLoRA": lambda: AdaLoraConfig(target_modules=["q_proj"], total_step=10),
}


@pytest.mark.parametrize("kind", WHOLE_KINDS)
def test_what_peft_can_merge_is_merged(checkpoints: Path, tmp_path: Path, kind: str) -> None:
    model = LlavaLlamaForCausalLM.from_pretrained(checkpoints / WHOLE, dtype=torch.float32)
    wrapped = get_peft_model(model, WHOLE_KINDS[kind]())
    torch.manual_seed(0)
    for value in wrapped.parameters():
        if value.requires_grad:
            value.data += 0.02 * torch.randn_like(value)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = wrapped.merge_and_unload().state_dict()
    base = str(checkpoints / WHOLE)
    _, loaded, _, _ = load_pretrained_model(
        str(tmp_path / "adapter"), base, "x", device="cpu", dtype="float32"
    )
    assert not inspect_checkpoint(str(tmp_path / "adapter"), base).problems
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        assert torch.allclose(loaded.state_dict()[name], expected[name], atol=1e-6)


def test_stored_biases_of_the_tower_ask_for_no_adapters_on_it(checkpoints: Path, tmp_path: Path) -> None:
    """As LoRA training with --lora_bias all leaves them; the tower has layers called q_proj as well."""
    base = str(checkpoints / WHOLE)
    _, model, _, _ = load_pretrained_model(base, None, "llava", device="cpu", dtype="float32")
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj"], bias="all", exclude_modules=r".*\bvision_tower\..*")
    )
    for name, value in wrapped.named_parameters():
        if "lora_B" in name or name.endswith("bias"):
            value.data += 0.1
    wrapped.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / ADAPTER[0]
    config.write_text(json.dumps({**json.loads(config.read_text()), "exclude_modules": None}))
    expected = wrapped.merge_and_unload().state_dict()
    _, loaded, _, _ = load_pretrained_model(
        str(tmp_path / "adapter"), base, "x", device="cpu", dtype="float32"
    )
    found = loaded.state_dict()
    assert any("vision_tower" in name and name.endswith("q_proj.bias") for name in expected)
    for name, value in expected.items():
        if name.endswith(("q_proj.weight", "bias")):
            assert torch.allclose(found[name], value, atol=1e-6), name


def test_an_adapter_that_peft_cannot_merge_is_one_sentence(checkpoints: Path, tmp_path: Path) -> None:
    model = LlavaLlamaForCausalLM.from_pretrained(checkpoints / WHOLE, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True))
    wrapped.save_pretrained(tmp_path / "adapter")
    refuse(tmp_path / "adapter", "cannot be merged", "lora_bias", base=checkpoints / WHOLE)


KINDS: dict[str, dict[str, Any]] = {
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "VERA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "XLORA": {"hidden_size": 64, "adapters": {}},
    "POLY": {},
    "CPT": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_another_kind_are_one_sentence(
    copy: Callable[[str], Path], vicuna: Path, kind: str
) -> None:
    folder = copy(LORA)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": kind, **KINDS[kind]}))
    refuse(folder, str(folder), base=vicuna)
    assert inspect_checkpoint(str(folder), str(vicuna)).problems


def test_another_base_than_that_of_training_is_told(
    copy: Callable[[str], Path], vicuna: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder = copy(LORA)
    load_pretrained_model(str(folder), str(vicuna), "x", device="cpu")
    assert "was trained on" not in caplog.text  # the folder has moved, and is called as it was
    other = Path(shutil.copytree(vicuna, tmp_path / "other"))
    load_pretrained_model(str(folder), str(other), "x", device="cpu")
    assert f"was trained on vicuna-tiny, and is put on {other}" in caplog.text


def test_a_dtype_of_the_config_that_is_none_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy(WHOLE)
    edit_config(folder, dtype="float99", torch_dtype="float99")
    with pytest.raises(Exception, match=r"config\.json has dtype 'float99'; expected float16"):
        load_pretrained_model(str(folder), None, "x", device="cpu", dtype="auto")
