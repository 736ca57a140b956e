"""Quantising as a caller of transformers asks for it: quantization_config, load_in_8bit and load_in_4bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folders
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import quantization
from llava.model.checkpoints.files import CheckpointError
from llava.utils import UserError

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

KINDS = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}
WAYS = {
    "config of 4 bits": (4, lambda: {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}),
    "config of 8 bits": (8, lambda: {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}),
    "dict": (4, lambda: {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}),
    "keyword of 4 bits": (4, lambda: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}),
    "keyword of 8 bits": (8, lambda: {"load_in_8bit": True}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> dict[str, Path]:
    """A whole LLaVA of each family with its tower stored, and a text model."""
    root = tmp_path_factory.mktemp("saved")
    made = {
        family: folders.whole(family, root / family, checkpoints, unfreeze_mm_vision_tower=True)
        for family in ("llama", "mistral", "mpt")
    }
    return {**made, "text": folders.text_base("llama", root / "text", checkpoints)}


def load(path: Path, **keywords: Any) -> Any:
    return load_pretrained_model(str(path), None, "x", device="cpu", dtype=torch.float32, **keywords)[1]


def auto(path: Path, **keywords: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **keywords)


def quantized(model: Any, bits: int) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, KINDS[bits])}


@pytest.mark.parametrize("loader", [load, auto])
@pytest.mark.parametrize("way", WAYS)
def test_only_the_llms_layers_are_quantised(way: str, loader: Any, saved: dict[str, Path]) -> None:
    bits, keywords = WAYS[way]
    model = loader(saved["llama"], **keywords())
    found = quantized(model, bits)
    assert len(found) == 14 and all(name.startswith("model.layers.") for name in found)
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("loader", [load, auto])
@pytest.mark.parametrize("family", ["mistral", "mpt"])
def test_every_family_spares_its_tower(family: str, loader: Any, saved: dict[str, Path]) -> None:
    found = quantized(loader(saved[family], quantization_config=BitsAndBytesConfig(load_in_8bit=True)), 8)
    assert found and all(".layers." in name or ".blocks." in name for name in found)
    assert not any("vision_tower" in name or "mm_projector" in name for name in found)


def test_the_callers_config_counts_and_stays_as_it_was(saved: dict[str, Path]) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", llm_int8_skip_modules=["model.layers.0"]
    )
    before = config.to_dict()
    model = load(saved["llama"], quantization_config=config)
    found = quantized(model, 4)
    assert len(found) == 7 and all(name.startswith("model.layers.1.") for name in found)
    assert model.model.layers[1].mlp.up_proj.weight.quant_type == "fp4"
    assert config.to_dict() == before


@pytest.mark.parametrize("way", WAYS)
def test_text_models_keep_their_head(way: str, saved: dict[str, Path]) -> None:
    bits, keywords = WAYS[way]
    model = load(saved["text"], **keywords())
    assert len(quantized(model, bits)) == 14 and type(model.lm_head) is torch.nn.Linear


def test_adapter_on_a_base_that_the_caller_quantises(tmp_path: Path, checkpoints: Path) -> None:
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    folders.lora("llama", tmp_path / "lora", base, checkpoints)
    model = load_pretrained_model(
        str(tmp_path / "lora"), str(base), "x-lora", device="cpu", dtype="float32", load_in_8bit=True
    )[1]
    assert len(quantized(model, 8)) == 14


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"load_8bit": True, "load_in_4bit": True}, "load_8bit is given, and load_in_4bit asks for 4 bit"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_8bit and load_in_4bit are both given"),
        (
            {"load_in_8bit": True, "quantization_config": {"load_in_4bit": True}},
            "load_in_8bit and quantization_config are both given",
        ),
        ({"quantization_config": BitsAndBytesConfig()}, "BitsAndBytesConfig that asks for neither 8 nor 4"),
        ({"quantization_config": "int8"}, "quantization_config is a str"),
        ({"quantization_config": {"load_in_4bit": 3}}, "quantization_config: .*load_in_4bit"),
        ({"quantization_config": {"quant_method": "nonsense"}}, "quantization_config: .*nonsense"),
        ({"quantization_config": QuantoConfig(weights="int8")}, "QuantoConfig that asks for neither"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(
    keywords: dict[str, Any], message: str, saved: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(saved["llama"], **keywords)
    assert "\n" not in str(caught.value)


def test_stored_quantised_and_asked_otherwise(
    saved: dict[str, Path], tmp_path: Path, checkpoints: Path
) -> None:
    load(saved["llama"], load_4bit=True).save_pretrained(tmp_path / "small")
    folders.add_tokenizer(tmp_path / "small", "llama", checkpoints)
    again = load(tmp_path / "small", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert len(quantized(again, 4)) == 14
    with pytest.raises(CheckpointError, match="stored in 4 bit, quantization_config cannot change that"):
        load(tmp_path / "small", quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_other_quantisations_spare_the_same_parts() -> None:
    """Of what transformers offers beside bitsandbytes, through the class; the packages are not needed."""
    config = QuantoConfig(weights="int8", modules_to_not_convert=["model.layers.0"])
    spared = quantization.sparing_parts(config, "model").modules_to_not_convert
    assert spared == ["model.layers.0", *quantization.spared_parts("model")]
    assert config.modules_to_not_convert == ["model.layers.0"]
