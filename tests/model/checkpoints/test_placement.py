"""Models spread over devices (CPU and disk): same results; embeddings, tower and projector in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import folders
import pytest
import tiny
import torch
from packaging import version
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import offloading
from llava.model.checkpoints.files import CheckpointError

V16 = {
    "unfreeze_mm_vision_tower": True,  # the checkpoint brings the tower
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}
slow = pytest.mark.slow
ONE_FAMILY = ["llama", pytest.param("mistral", marks=slow), pytest.param("mpt", marks=slow)]
TWO_FAMILIES = ["llama", pytest.param("mistral", marks=slow), "mpt"]
STEM = folders.STEM
PARTS = {
    "llama": ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"),
    "mistral": ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"),
    "mpt": ("wte", "blocks.0", "blocks.1", "norm_f"),
}
VISION = ("vision_tower", "mm_projector", "image_newline")


def device_map(family: str, *disk: str) -> dict[str, str]:
    """Map everything to the CPU but the parts `disk`."""
    stem = STEM[family]
    names = [f"{stem}{part}" for part in (*PARTS[family], *VISION)] + ["lm_head"]
    return {name: "disk" if name.removeprefix(stem) in disk else "cpu" for name in names}


def load(path: Path, base: Path | None = None, **kwargs: Any) -> tuple[Any, Any]:
    """Load in float32 with the default device, so that device_map counts; returns tokenizer and model."""
    kwargs = {"dtype": torch.float32, **kwargs}
    loaded = load_pretrained_model(str(path), base and str(base), path.name, **kwargs)
    return loaded[0], loaded[1]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    images = [tiny.pixels(3, 3, 56, 56), tiny.pixels(3, 3, 56, 56, seed=1)]
    sizes = [(100, 50), (56, 100)]
    return model(input_ids=tiny.prompt(3, "image", 4, "image", 2), images=images, image_sizes=sizes).logits


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Any:
    """Give the folder of a v1.6-style LLaVA of a family, written once."""
    root = tmp_path_factory.mktemp("split")

    def make(family: str) -> Path:
        if not (root / family).exists():
            folders.whole(family, root / family, checkpoints, **V16)
        return root / family

    return make


def in_memory(model: Any) -> list[torch.Tensor]:
    """List what is used outside the LLM's forward."""
    body = model.get_model()
    parts = [model.get_input_embeddings(), body.mm_projector, body.vision_tower]
    return [value for part in parts for value in part.parameters()] + [body.image_newline]


@pytest.mark.parametrize("family", TWO_FAMILIES)
@pytest.mark.parametrize(
    "disk",
    [
        ("layers.0", "blocks.0"),
        ("layers.1", "blocks.1", "vision_tower", "mm_projector", "image_newline"),
        ("embed_tokens", "norm", "layers.0", "layers.1", "mm_projector", "blocks.1"),
    ],
    ids=["one layer", "vision", "embeddings and layers"],
)
def test_split_between_cpu_and_disk(
    family: str, disk: tuple[str, ...], folder_of: Any, tmp_path: Path
) -> None:
    path = folder_of(family)
    whole = load(path, device_map="cpu")[1]
    split = load(path, device_map=device_map(family, *disk), offload_folder=str(tmp_path))[1]
    assert offloading.is_offloaded(split) and not offloading.is_offloaded(whole)
    assert {value.device.type for value in in_memory(split)} == {"cpu"}
    assert {value.dtype for value in in_memory(split)} == {torch.float32}
    assert split.device.type == "cpu"
    assert all(torch.equal(a, b) for a, b in zip(in_memory(split), in_memory(whole), strict=True))
    for _ in range(2):  # weights are sent away again after a forward
        assert torch.equal(logits(split), logits(whole))


def test_a_tower_that_is_read_from_its_own_files(checkpoints: Path, tmp_path: Path) -> None:
    path = folders.whole("llama", tmp_path / "m", checkpoints, mm_patch_merge_type="flat")
    spread = device_map("llama", "layers.0", "vision_tower", "embed_tokens")
    inputs = {"input_ids": tiny.prompt(3, "image", 4), "images": tiny.pixels(1, 3, 56, 56)}
    with torch.no_grad():
        whole = load(path, device_map="cpu")[1](**inputs).logits
        split = load(path, device_map=spread, offload_folder=str(tmp_path / "off"))[1]
        assert torch.equal(split(**inputs).logits, whole)
    assert not any(value.is_meta for value in split.get_vision_tower().parameters())


@pytest.mark.parametrize("name", [pytest.param("one bin", marks=slow), "bin shards"])
def test_split_of_bin_files(name: str, folder_of: Any, checkpoints: Path, tmp_path: Path) -> None:
    path = folders.whole("llama", tmp_path / "m", checkpoints, **V16)
    if name == "one bin":
        folders.rewrite(path, lambda weights: None, "pytorch_model.bin")
    else:
        folders.shard(path, "pytorch_model-{:05d}-of-{:05d}.bin")
    whole = load(path, device_map="cpu")[1]
    spread = device_map("llama", "layers.0", "mm_projector", "vision_tower")
    split = load(path, device_map=spread, offload_folder=str(tmp_path / "off"))[1]
    assert torch.equal(logits(split), logits(whole))


@pytest.mark.parametrize("family", ONE_FAMILY)
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_auto_with_too_little_memory(share: float, family: str, folder_of: Any, tmp_path: Path) -> None:
    path = folder_of(family)
    size = (path / "model.safetensors").stat().st_size
    limits = {"cpu": int(size * share), "disk": 10**9}
    split = load(path, max_memory=limits, offload_folder=str(tmp_path))[1]
    assert "disk" in split.hf_device_map.values()
    assert {value.device.type for value in in_memory(split)} == {"cpu"}
    assert torch.equal(logits(split), logits(load(path)[1]))


def test_chat_and_beams_on_a_split_model(folder_of: Any, tmp_path: Path) -> None:
    from llava.inference.chat import ChatSession
    from llava.inference.sampling import SamplingParams

    answers = []
    spread = device_map("llama", "embed_tokens", "layers.1", "mm_projector")
    for kwargs in ({"device_map": "cpu"}, {"device_map": spread, "offload_folder": str(tmp_path)}):
        tokenizer, model = load(folder_of("llama"), **kwargs)
        processor = model.get_vision_tower().image_processor
        session = ChatSession(tokenizer, model, processor, template="llava_v1")
        image = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
        for params in (
            SamplingParams(temperature=0, max_new_tokens=6),
            SamplingParams(temperature=0, num_beams=2, max_new_tokens=4),
        ):
            answers.append((session.ask("What is this?", [image], params), session.ask("Why?", (), params)))
    assert answers[:2] == answers[2:]


@pytest.mark.parametrize("family", ONE_FAMILY)
@pytest.mark.parametrize("disk", ["body", "everything"])
def test_one_name_for_many_parts(disk: str, family: str, folder_of: Any, tmp_path: Path) -> None:
    stem = STEM[family].rstrip(".")
    spread = {"": "disk"} if disk == "everything" else {stem: "disk", "lm_head": "cpu"}
    if family == "mpt" and disk == "body":
        spread["lm_head"] = "disk"  # tied to the embeddings
    if set(spread.values()) == {"disk"} and version.parse(accelerate.__version__) < version.parse("1.15"):
        with pytest.raises(CheckpointError, match="offload the whole model to the disk"):
            load(folder_of(family), device_map=spread, offload_folder=str(tmp_path))
        return
    split = load(folder_of(family), device_map=spread, offload_folder=str(tmp_path))[1]
    assert {value.device.type for value in in_memory(split)} == {"cpu"}
    for _ in range(2):
        assert torch.equal(logits(split), logits(load(folder_of(family), device_map="cpu")[1]))
    assert split.get_model().image_newline.device.type == "cpu"


def test_text_model(tmp_path: Path, checkpoints: Path) -> None:
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    spread = device_map("llama", "embed_tokens", "layers.0")
    spread = {name: place for name, place in spread.items() if name.split(".")[-1] not in VISION}
    split = load(base, device_map=spread, offload_folder=str(tmp_path / "off"))[1]
    ids = tiny.prompt(9)
    with torch.no_grad():
        assert torch.equal(split(input_ids=ids).logits, load(base, device_map="cpu")[1](input_ids=ids).logits)
    assert split.device.type == "cpu"


# ------------------------------------------------------------------------------------------ what is refused


def test_adapters_need_all_weights(tmp_path: Path, checkpoints: Path) -> None:
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    folders.lora("llama", tmp_path / "lora", base, checkpoints)
    spread = device_map("llama", "layers.0")
    with pytest.raises(CheckpointError, match="put together with its base.*merge the model first"):
        load(tmp_path / "lora", base, device_map=spread, offload_folder=str(tmp_path / "off"))


# -------------------------------------------------------------------------------------------- several devices


def test_blocks_and_tower_stay_whole(family: str, build: Any) -> None:
    """What "auto" must not cut: the LLM's blocks, and the tower, which has one device."""
    block = {"llama": "LlamaDecoderLayer", "mistral": "MistralDecoderLayer", "mpt": "MptBlock"}[family]
    model = build(family)
    assert {block, "CLIPVisionTower", "CLIPVisionTowerS2"} <= set(model._no_split_modules)
    names = {type(module).__name__ for module in model.modules()}
    assert {block, "CLIPVisionTower"} <= names


def test_computes_on(build: Any) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = build("llama")
    projector = model.get_model().mm_projector
    assert offloading.computes_on(projector) == torch.device("cpu")
    add_hook_to_module(projector, AlignDevicesHook(execution_device="meta"))
    assert offloading.computes_on(projector) == torch.device("meta")
    assert offloading.computes_on(torch.nn.Identity()) == torch.device("cpu")


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.gpu
@two_gpus
@pytest.mark.parametrize(
    "parts", [("layers.1", "blocks.1", "norm"), VISION, ("layers.0", "blocks.0", "mm_projector")]
)
def test_two_gpus(parts: tuple[str, ...], family: str, folder_of: Any) -> None:
    spread = {name: int(place == "disk") for name, place in device_map(family, *parts).items()}
    split = load(folder_of(family), device_map=spread)[1]
    tower, projector = split.get_vision_tower(), split.get_model().mm_projector
    assert tower.device == next(projector.parameters()).device
    expected = logits(load(folder_of(family), device_map="cpu")[1])
    assert torch.allclose(logits(split).cpu(), expected, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_with_parts_on_the_cpu(family: str, folder_of: Any, tmp_path: Path) -> None:
    """Parts on the CPU beside a GPU are copied to it when they are used; those used directly stay there."""
    parts = ("embed_tokens", "layers.0", "blocks.1", *VISION)
    spread = {name: "cpu" if place == "disk" else 0 for name, place in device_map(family, *parts).items()}
    split = load(folder_of(family), device_map=spread, offload_folder=str(tmp_path))[1]
    assert {value.device.type for value in in_memory(split)} == {"cuda"}
    expected = logits(load(folder_of(family), device_map="cpu")[1])
    for _ in range(2):
        assert torch.allclose(logits(split).cpu(), expected, atol=1e-4)
