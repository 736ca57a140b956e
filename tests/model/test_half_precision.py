"""Models in float16 and bfloat16 on the CPU: each part, sampling and beams; images of any dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch

from llava.model.builder import best_dtype, load_pretrained_model

slow = pytest.mark.slow
HALVES = [torch.float16, torch.bfloat16]
V16 = {
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}
S2 = {"s2": True, "s2_scales": "56,112", "mm_hidden_size": 64}
STYLES = {"v1.5": {}, "v1.6": V16, "s2": S2}


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Any:
    """Load a tiny LLaVA of a family and style on the CPU; without a dtype, in the default one."""
    root = tmp_path_factory.mktemp("half")

    def make(family: str, style: str, **kwargs: Any) -> Any:
        folder = root / f"{family}-{style}"
        if not folder.exists():
            fields = {**folders.base_fields(family), **STYLES[style]}
            folders.whole(family, folder, checkpoints, **fields)
        return load_pretrained_model(str(folder), None, folder.name, device="cpu", **kwargs)[1]

    return make


def sample_images(style: str) -> dict[str, Any]:
    """Two images as the model takes them."""
    if style == "v1.6":
        images = [tiny.pixels(3, 3, 56, 56), tiny.pixels(3, 3, 56, 56, seed=1)]
        return {"images": images, "image_sizes": [(100, 50), (56, 100)]}
    edge = 112 if style == "s2" else 56
    return {"images": tiny.pixels(2, 3, edge, edge), "image_sizes": [(100, 50), (56, 100)]}


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    images = inputs["images"]
    moved = images.to(dtype) if torch.is_tensor(images) else [one.to(dtype) for one in images]
    return {**inputs, "images": moved}


PROMPT = tiny.prompt(3, "image", 4, "image", 2)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", pytest.param("mistral", marks=slow), "mpt"])
@pytest.mark.parametrize("style", [pytest.param("v1.5", marks=slow), "v1.6", "s2"])
def test_float16(family: str, style: str, load: Any) -> None:
    """Every step of a forward pass and of each kind of decoding runs."""
    model = load(family, style, dtype=torch.float16)
    assert {value.dtype for value in model.parameters()} == {torch.float16}
    exact = load(family, style, dtype=torch.float32)(input_ids=PROMPT, **sample_images(style)).logits
    inputs = cast(sample_images(style), torch.float16)
    logits = model(input_ids=PROMPT, **inputs).logits
    assert logits.dtype == torch.float16
    assert torch.nn.functional.cosine_similarity(logits.float().flatten(), exact.flatten(), dim=0) > 0.999
    torch.manual_seed(0)
    for settings in (
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20},
        {"do_sample": False, "num_beams": 3},
    ):
        new_ids = model.generate(PROMPT, **inputs, max_new_tokens=4, **settings)
        assert 1 <= new_ids.shape[1] <= 4


@torch.no_grad()
@pytest.mark.parametrize("style", STYLES)
def test_default_dtype_on_the_cpu(style: str, load: Any) -> None:
    """float16 with the tower in float32, as the reference loads for device="cpu"."""
    model = load("llama", style)
    tower = model.get_vision_tower()
    others = {value.dtype for name, value in model.named_parameters() if "vision_tower" not in name}
    assert (others, tower.dtype) == ({torch.float16}, torch.float32)
    inputs = cast(sample_images(style), torch.float16)
    assert model.generate(PROMPT, **inputs, max_new_tokens=3, do_sample=False).shape[0] == 1
    half = load("llama", style, dtype=torch.float16)
    expected, logits = (one(input_ids=PROMPT, **inputs).logits.float() for one in (half, model))
    assert torch.nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.999


@torch.no_grad()
@pytest.mark.parametrize("style", [pytest.param("v1.5", marks=slow), "v1.6", "s2"])
@pytest.mark.parametrize("dtype", HALVES)
def test_images_of_any_dtype(dtype: torch.dtype, style: str, load: Any) -> None:
    model = load("llama", style, dtype=dtype)
    expected = model(input_ids=PROMPT, **cast(sample_images(style), dtype)).logits
    for other in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        logits = model(input_ids=PROMPT, **cast(sample_images(style), other)).logits
        assert logits.dtype == dtype
        assert (
            torch.nn.functional.cosine_similarity(logits.flatten().float(), expected.flatten().float(), dim=0)
            > 0.99
        )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "settings", [{"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 1}, {"num_beams": 2}]
)
def test_sessions(dtype: torch.dtype, settings: dict[str, Any], load: Any, checkpoints: Path) -> None:
    from PIL import Image

    from llava.inference.chat import ChatSession
    from llava.inference.sampling import SamplingParams
    from llava.model.tokenizer import load_tokenizer

    model = load("llama", "v1.6", dtype=dtype)
    tokenizer = load_tokenizer(str(checkpoints / "vicuna-tiny"))
    processor = model.get_vision_tower().image_processor
    session = ChatSession(tokenizer, model, processor, template="llava_v1")
    image = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    params = SamplingParams(max_new_tokens=4, **settings)
    session.ask("What is this?", [image], params)
    session.ask("Why?", (), params)
    assert len(session.conversation.messages) == 4


def test_best_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cuda", "cuda:1", "mps"):
        assert best_dtype(device) == torch.float16
    for capabilities, expected in (
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert best_dtype("cpu") == expected
