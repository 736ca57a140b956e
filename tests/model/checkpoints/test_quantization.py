"""Models of 8 and 4 bits: which layers, how close, refusals, saving, stored models, training on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import quantization
from llava.model.checkpoints.files import CheckpointError
from llava.utils import UserError

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

slow = pytest.mark.slow
ONE_FAMILY = ["llama", pytest.param("mistral", marks=slow), pytest.param("mpt", marks=slow)]

KINDS = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}
# cosine with the float model's logits; random weights lose more than trained ones
CLOSE = {4: 0.9, 8: 0.999}
WIDE = {
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "mistral": {"hidden_size": 64, "intermediate_size": 128},
    "mpt": {"d_model": 64},
}
V16 = {
    "unfreeze_mm_vision_tower": True,  # the checkpoint brings the tower
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}


def load(path: Path, base: Path | None = None, **kwargs: Any) -> tuple[Any, Any]:
    """Load on the CPU; returns tokenizer and model."""
    kwargs = {"device": "cpu", **kwargs}
    loaded = load_pretrained_model(str(path), base and str(base), path.name, **kwargs)
    return loaded[0], loaded[1]


def flag(bits: int) -> dict[str, bool]:
    return {f"load_{bits}bit": True}


def quantized(model: Any, bits: int) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, KINDS[bits])}


def llm_layers(model: Any) -> set[str]:
    """Name the linear layers of the LLM's blocks."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (".layers." in name or ".blocks." in name)
        and "vision_tower" not in name
    }


@torch.no_grad()
def logits(model: Any, **kwargs: Any) -> torch.Tensor:
    """Compute logits (n, vocabulary) of a prompt with an image."""
    if hasattr(model, "get_vision_tower"):
        edge = model.get_vision_tower().config.image_size
        kwargs["images"] = tiny.pixels(1, 3, edge, edge).to(model.dtype)
        ids = tiny.prompt(3, "image", 4)
    else:
        ids = tiny.prompt(7)
    return model(input_ids=ids, **kwargs).logits[0].float()


def close(first: torch.Tensor, second: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Any:
    """Give the folder of a LLaVA of a family whose widths suit bitsandbytes' CPU kernel, written once."""
    root = tmp_path_factory.mktemp("wide")

    def make(family: str, **fields: Any) -> Path:
        folder = root / f"{family}{'-16' if fields else ''}"
        if not folder.exists():
            folders.whole(family, folder, checkpoints, **WIDE[family], **fields)
        return folder

    return make


# ------------------------------------------------------------------------------------- what is quantised


@pytest.mark.parametrize(
    ("style", "bits"),
    [
        ("v15", 4),
        ("v16", 8),
        pytest.param("v15", 8, marks=slow),
        pytest.param("v16", 4, marks=slow),
    ],
)
def test_the_llms_layers_and_nothing_else(family: str, bits: int, style: str, wide: Any) -> None:
    folder = wide(family, **(V16 if style == "v16" else {}))
    exact, model = load(folder, dtype=torch.float32)[1], load(folder, dtype=torch.float32, **flag(bits))[1]
    assert quantized(model, bits) == llm_layers(model) == llm_layers(exact)
    assert len(quantized(model, bits)) >= 8
    for part in (model.get_vision_tower(), model.get_model().mm_projector, model.lm_head):
        kinds = {type(module) for module in part.modules() if isinstance(module, torch.nn.Linear)}
        assert kinds <= {torch.nn.Linear, torch.nn.modules.linear.NonDynamicallyQuantizableLinear}
        assert all(value.dtype == torch.float32 for value in part.parameters())
    assert CLOSE[bits] < close(logits(model), logits(exact)) < 1


@pytest.mark.parametrize("family", ONE_FAMILY)
@pytest.mark.parametrize("bits", [pytest.param(4, marks=slow), 8])
def test_adapter_and_projector_on_a_quantised_base(
    family: str, bits: int, tmp_path: Path, checkpoints: Path
) -> None:
    """Widths of 32, which bitsandbytes' CPU kernel for bfloat16 does not take."""
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    folders.lora(family, tmp_path / "lora", base, checkpoints)
    folders.projector(family, tmp_path / "projector", checkpoints)
    for name in ("lora", "projector"):
        exact = load(tmp_path / name, base, dtype=torch.float32)[1]
        model = load(tmp_path / name, base, dtype=torch.float32, **flag(bits))[1]
        assert quantized(model, bits) == llm_layers(exact)
        assert type(model.lm_head) is torch.nn.Linear
        assert close(logits(model), logits(exact)) > (0.9 if bits == 4 else 0.99)


@pytest.mark.parametrize("family", ONE_FAMILY)
@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=slow)])
def test_text_models(family: str, bits: int, tmp_path: Path, checkpoints: Path) -> None:
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    exact, model = load(base, dtype=torch.float32)[1], load(base, dtype=torch.float32, **flag(bits))[1]
    assert quantized(model, bits) == llm_layers(exact)
    assert type(model.lm_head) is torch.nn.Linear
    assert close(logits(model), logits(exact)) > (0.7 if bits == 4 else 0.99)


# ---------------------------------------------------------------------------------------- output and dtypes


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [
        (4, torch.bfloat16),
        (8, torch.float16),
        *(pytest.param(4, one, marks=slow) for one in (torch.float16, torch.float32)),
        *(pytest.param(8, one, marks=slow) for one in (torch.bfloat16, torch.float32)),
    ],
)
def test_logits_and_chat_in_each_dtype(bits: int, dtype: torch.dtype, wide: Any, checkpoints: Path) -> None:
    from llava.inference.chat import ChatSession
    from llava.inference.sampling import SamplingParams

    exact = load(wide("llama"), dtype=torch.float32)[1]
    tokenizer, model = load(wide("llama"), dtype=dtype, **flag(bits))
    assert close(logits(model), logits(exact)) > CLOSE[bits]
    assert {value.dtype for value in model.get_vision_tower().parameters()} == {dtype}
    session = ChatSession(tokenizer, model, model.get_vision_tower().image_processor, template="llava_v1")
    params = SamplingParams(temperature=0, max_new_tokens=3)
    image = Image.linear_gradient("L").convert("RGB")
    session.ask("What is this?", [image], params)
    session.ask("And why?", (), params)
    assert session.finish_reason in ("length", "stop")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", [4, 8])
def test_on_a_gpu(bits: int, wide: Any) -> None:
    exact = load(wide("llama"), dtype=torch.float32)[1]
    model = load(wide("llama"), device="cuda", dtype=torch.float16, **flag(bits))[1]
    assert quantized(model, bits) == llm_layers(exact)
    assert {value.device.type for value in model.parameters()} == {"cuda"}
    ids = tiny.prompt(9)
    with torch.no_grad():
        got, expected = model(input_ids=ids.cuda()).logits.cpu().float(), exact(input_ids=ids).logits
    assert close(got, expected) > CLOSE[bits]


def test_weights_take_the_memory_they_should(wide: Any) -> None:
    def size(**kwargs: Any) -> int:
        model = load(wide("llama"), dtype=torch.float16, **kwargs)[1]
        layers = [module for name, module in model.named_modules() if name in llm_layers(model)]
        return sum(value.numel() * value.element_size() for one in layers for value in one.parameters())

    half = size()
    assert (size(load_8bit=True), size(load_4bit=True)) == (half / 2, half / 4)


# ------------------------------------------------------------------------------------------- saved and stored


@pytest.mark.parametrize("bits", [4, 8])
def test_saved_and_loaded_again(bits: int, tmp_path: Path, wide: Any, checkpoints: Path) -> None:
    model = load(wide("llama"), dtype=torch.float32, **flag(bits))[1]
    model.save_pretrained(tmp_path / "saved")
    folders.add_tokenizer(tmp_path / "saved", "llama", checkpoints)
    expected = logits(model)
    for asked in ({}, flag(bits)):
        again = load(tmp_path / "saved", dtype=torch.float32, **asked)[1]
        assert quantized(again, bits) == quantized(model, bits)
        assert torch.equal(logits(again), expected)
    # where bitsandbytes has repacked 4-bit weights for its CPU kernel, their scales come back rounded
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", dtype=torch.float32)[1]
    assert close(logits(again), expected) > 0.999
    with pytest.raises(
        CheckpointError, match=f"stored in {bits} bit, load_{12 - bits}bit cannot change that"
    ):
        load(tmp_path / "saved", **flag(12 - bits))


def test_an_adapter_on_a_base_that_is_stored_quantised(tmp_path: Path, checkpoints: Path) -> None:
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    folders.lora("llama", tmp_path / "lora", base, checkpoints)
    load(base, dtype=torch.float32, load_4bit=True)[1].save_pretrained(tmp_path / "small")
    folders.add_tokenizer(tmp_path / "small", "llama", checkpoints)
    folders.refuse(tmp_path / "lora", "small is stored in 4 bit", "load_4bit", base=tmp_path / "small")


def test_an_adapter_that_was_trained_on_a_quantised_base(tmp_path: Path, checkpoints: Path) -> None:
    """Its config tells how the base was held in training; the base on the disk is not quantised."""
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    folders.lora("llama", tmp_path / "lora", base, checkpoints)
    expected = logits(load(tmp_path / "lora", base, dtype=torch.float32)[1])
    arguments = quantization.quantization_arguments(4, torch.float32)
    folders.edit_config(tmp_path / "lora", **{k: v.to_dict() for k, v in arguments.items()})
    model = load(tmp_path / "lora", base, dtype=torch.float32)[1]
    assert torch.equal(logits(model), expected)
    assert not hasattr(model.config, "quantization_config")


def test_another_quantisation_is_refused(tmp_path: Path, checkpoints: Path) -> None:
    folder = folders.whole("llama", tmp_path / "m", checkpoints)
    folders.edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    folders.refuse(folder, "is quantised with 'awq'", "only bitsandbytes", "load_4bit")


# --------------------------------------------------------------------------------------------- refused early


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"device": "mps"}, "load_4bit needs CUDA or a CPU, the device is mps"),
        (
            {"device": "cuda", "device_map": {"model": "cpu", "lm_head": "disk"}},
            "load_4bit cannot offload: device_map has cpu, disk",
        ),
        (
            {"device": "cuda", "device_map": {"model": 0, "lm_head": "cpu"}},
            "load_4bit cannot offload: device_map has cpu, cuda",
        ),
    ],
    ids=["mps", "disk", "cpu beside gpu"],
)
def test_devices_that_cannot(place: dict[str, Any], message: str, wide: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("llava.model.checkpoints.loading.from_pretrained", None)  # no weight is read
    with pytest.raises(UserError, match=message):
        load(wide("llama"), load_4bit=True, **place)


def test_a_model_that_does_not_fit(wide: Any, tmp_path: Path) -> None:
    size = (wide("llama") / "model.safetensors").stat().st_size
    limits = {"cpu": size // 8, "disk": 10**9}
    with pytest.raises(CheckpointError, match="does not fit into the devices' memory in 8 or 4 bit"):
        load(wide("llama"), device="cuda", load_8bit=True, max_memory=limits, offload_folder=str(tmp_path))


def test_bitsandbytes_that_does_not_work_here(wide: Any, monkeypatch: Any) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no kernel image is available\nmore lines")

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", broken)
    with pytest.raises(UserError, match="load_4bit does not work on cpu in float16 .*no kernel image"):
        load(wide("llama"), load_4bit=True)


def test_bitsandbytes_that_is_not_installed(wide: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for name in ("load_4bit", "load_8bit"):
        with pytest.raises(UserError, match=f"{name} needs the package 'bitsandbytes'.*pip install"):
            load(wide("llama"), **{name: True})


def test_both_flags_are_8_bits(caplog: pytest.LogCaptureFixture) -> None:
    assert quantization.requested_bits(True, True) == 8
    assert "8 bits are used" in caplog.text
    assert [quantization.requested_bits(*flags) for flags in ((0, 0), (0, 1), (1, 0))] == [16, 4, 8]


def test_the_random_state_is_left_alone(wide: Any) -> None:
    state = torch.get_rng_state()
    quantization.check_quantization(4, "cpu", torch.float32, asked_by="load_4bit")
    assert torch.equal(torch.get_rng_state(), state)


# -------------------------------------------------------------------------------------------------- training


def test_an_evaluation_does_not_change_the_gradients_after_it(wide: Any) -> None:
    """bitsandbytes repacks layers in eval mode on CPUs with bfloat16, and gives wrong gradients after it."""
    from types import SimpleNamespace

    from peft import LoraConfig, get_peft_model

    from llava.train.setup.trainable import prepare_quantized

    model = load(wide("llama"), dtype=torch.float32, load_4bit=True)[1]
    model = prepare_quantized(model, SimpleNamespace(gradient_checkpointing=False))
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], exclude_modules=".*tower.*"))

    def gradients() -> list[torch.Tensor]:
        wrapped.train()
        wrapped.zero_grad()
        ids = tiny.prompt(12)
        wrapped(input_ids=ids, labels=ids).loss.backward()
        return [value.grad.clone() for value in wrapped.parameters() if value.grad is not None]

    before = gradients()
    wrapped.eval()
    logits(wrapped)
    after = gradients()
    assert len(before) == len(after) >= 4
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True))


def test_training_and_asking_quantise_alike() -> None:
    from types import SimpleNamespace

    from llava.train.setup.trainable import quantization_arguments

    settings = {"compute_dtype": torch.bfloat16, "double_quant": True, "quant_type": "nf4"}
    for bits in (4, 8):
        plan = SimpleNamespace(bits=bits, device=torch.device("cpu"), **settings)
        ours = quantization_arguments(plan)
        asked = quantization.quantization_arguments(bits, torch.bfloat16)
        assert ours["quantization_config"].to_dict() == asked["quantization_config"].to_dict()
        assert ours["device_map"] == {"": torch.device("cpu")}
        assert asked["quantization_config"].llm_int8_threshold == 6.0
