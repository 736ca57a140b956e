"""Several towers as one, and towers at another resolution than their config's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.fused import FusedVisionTower, split_name
from llava.model.tools.inspection import inspect_checkpoint
from llava.utils import UserError

SIZES = {"intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of towers; those of a grid of 4 x 4 have different widths and sizes of image."""
    root = tmp_path_factory.mktemp("a+b")  # a + in the path of each
    torch.manual_seed(0)
    models = {
        "clip": CLIPVisionModel(CLIPVisionConfig(hidden_size=16, image_size=28, patch_size=7, **SIZES)),
        "siglip": SiglipVisionModel(SiglipVisionConfig(hidden_size=24, image_size=32, patch_size=8, **SIZES)),
        "dino": Dinov2Model(Dinov2Config(hidden_size=8, image_size=28, patch_size=7, **SIZES)),
        "fine": SiglipVisionModel(SiglipVisionConfig(hidden_size=24, image_size=28, patch_size=4, **SIZES)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: root / name for name in models}


def make(name: object, **fields: Any) -> VisionTower:
    return build_vision_tower(SimpleNamespace(mm_vision_tower=str(name), mm_vision_select_layer=-2, **fields))


def joined(towers: dict[str, Path], *names: str) -> str:
    return "+".join(str(towers[name]) for name in names)


def noise(width: int, height: int) -> Image.Image:
    values = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(values.to(torch.uint8).numpy())


@pytest.fixture
def pair(tmp_path: Path, towers: dict[str, Path]) -> str:
    """CLIP and SigLIP as links without a + in their paths."""
    for name in ("clip", "siglip", "dino", "fine"):
        (tmp_path / name).symlink_to(towers[name])
    return f"{tmp_path}/clip+{tmp_path}/siglip"


@pytest.mark.parametrize("rule", ["square", "pad"])
def test_each_tower_sees_what_its_own_processor_makes(pair: str, rule: str) -> None:
    """Features side by side are those of the towers alone, whose images differ in size."""
    fused, image = make(pair), noise(50, 31)
    assert isinstance(fused, FusedVisionTower)
    config = SimpleNamespace(image_aspect_ratio=rule)
    pixels = process_images([image], fused.image_processor, config)
    assert tuple(pixels.shape) == (1, 6, 32, 32)
    alone = [make(name) for name in pair.split("+")]
    if rule == "square":
        parts = [one(process_images([image], one.image_processor, config)) for one in alone]
        assert torch.equal(fused(pixels), torch.cat(parts, dim=-1))
    assert fused(pixels).shape == (1, fused.tokens_per_tile, fused.hidden_size) == (1, 16, 40)
    assert (fused.tile_size, fused.num_layers, fused.prefix_tokens) == (32, 3, 0)


def test_a_fused_model_trains_saves_loads_and_is_inspected(pair: str, vicuna: Path, tmp_path: Path) -> None:
    model: Any = tiny.llava_model("llama", Path(pair), mm_hidden_size=40)
    tower = model.get_vision_tower()
    tower.unfreeze()
    ids = tiny.prompt(3, "image", 4)
    images = process_images([noise(40, 40)], tower.image_processor, model.config)
    losses = tiny.train_two_steps(model, ids, images)
    assert losses[1] < losses[0]
    model.eval().config.unfreeze_mm_vision_tower = True
    with torch.no_grad():
        logits = model(input_ids=ids, images=images).logits
    folder = tmp_path / "llava"
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((vicuna / name).read_bytes())
    _, loaded, processor, _ = load_pretrained_model(
        str(folder), None, "llava", device="cpu", dtype=torch.float32
    )
    with torch.no_grad():
        again = process_images([noise(40, 40)], processor, loaded.config)
        assert torch.equal(loaded.encode_images(again), model.encode_images(images))
        same = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert torch.equal(same(input_ids=ids, images=again).logits, logits)
    assert not inspect_checkpoint(str(folder)).problems


def test_scales_of_fused_towers(tmp_path: Path, pair: str) -> None:
    """S2 looks with each of the towers at each scale."""
    fused = make(f"{tmp_path}/clip+{tmp_path}/dino", s2=True, s2_scales="28,56")
    pixels = fused.image_processor.preprocess(noise(64, 64))["pixel_values"]
    assert tuple(pixels.shape) == (1, 6, 56, 56)
    assert fused(pixels).shape == (1, 16, fused.hidden_size) == (1, 16, 2 * (16 + 8))


def test_bad_names_and_grids(tmp_path: Path, pair: str, towers: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"clip has 4 x 4 patches, .*fine has 7 x 7 patches; expected equal"):
        make(f"{tmp_path}/clip+{tmp_path}/fine")
    with pytest.raises(UserError, match="without a name beside it"):
        make(f"{tmp_path}/clip+")
    with pytest.raises(UserError, match="no-such"):
        make(f"{tmp_path}/clip+{tmp_path}/no-such")
    assert split_name(str(towers["clip"])) == []  # a folder with a + in its path is one tower
    with pytest.raises(UserError, match=r"3 channels; expected 6"):
        make(pair)(tiny.pixels(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["clip", "siglip", "dino"])
def test_another_resolution(towers: dict[str, Path], name: str) -> None:
    """Twice the size, four times the patches, position embeddings as transformers interpolates them."""
    plain = make(towers[name])
    edge = 2 * plain.tile_size
    tower = make(towers[name], mm_vision_resolution=edge)
    pixels = process_images([noise(50, 31)], tower.image_processor, SimpleNamespace())
    assert tuple(pixels.shape) == (1, 3, edge, edge)
    assert (tower.tile_size, tower.num_patches) == (edge, 64)
    model = plain.model_class.from_pretrained(towers[name]).eval()
    more = {"interpolate_pos_encoding": True} if tower.resizing == "argument" else {}
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True, **more).hidden_states
        assert torch.equal(tower(pixels), states[-2][:, tower.prefix_tokens :])


def test_resolutions_that_do_not_fit(towers: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="mm_vision_resolution is 30; expected a multiple of 7"):
        make(towers["clip"], mm_vision_resolution=30)
