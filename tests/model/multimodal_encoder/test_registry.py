"""Every registered tower: features, counts, training, saved names and scales, against transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.registry import TOWERS, tower_class_names

TOWER_CLASSES = sorted(set(TOWERS.values()), key=lambda one: one.__name__)
EXAMPLE = "the example of the docs"
EDGE, PATCH, LAYERS, WIDTH = 28, 7, 4, 16


SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "image_size": EDGE, "patch_size": PATCH,
}  # fmt: skip
# where a config has other fields: what replaces those above
OTHER_SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("ConvNextVisionTower", "ConvNextV2VisionTower"),
        {"hidden_sizes": [8, 24, WIDTH, 32], "depths": [1] * LAYERS, "image_size": 2 * EDGE},
    ),
    "InternVisionTower": {"image_size": [EDGE, EDGE], "patch_size": [PATCH, PATCH]},
    "NaflexVisionTower": {"num_patches": (EDGE // PATCH) ** 2},
    "RadioVisionTower": {"mlp_ratio": 2.0, "max_img_size": 2 * EDGE},
}


def write_tower(tower_class: type[VisionTower], folder: Path) -> Path:
    """Write a random tower of a class as transformers saves it, with its image processor."""
    known = tower_class.config_class().to_dict()
    fields = {**SIZES, **OTHER_SIZES.get(tower_class.__name__, {})}
    config = tower_class.config_class(**{name: value for name, value in fields.items() if name in known})
    torch.manual_seed(0)
    model = tower_class.model_class(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    return folder


def documented(heading: str) -> str:
    """Return the code block under a heading of docs/architecture.md."""
    page = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    return page.partition(f"\n## {heading}\n")[2].partition("```python\n")[2].partition("```")[0]


@pytest.fixture(
    scope="module", params=[*TOWER_CLASSES, EXAMPLE], ids=lambda one: getattr(one, "__name__", one)
)
def kind(request: pytest.FixtureRequest) -> Iterator[type[VisionTower]]:
    """Each registered tower class in turn, and the one that the docs add."""
    if request.param != EXAMPLE:
        yield request.param
        return
    with mock.patch.dict(TOWERS):
        code = documented("Add your own tower")
        assert len(code.splitlines()) <= 25 + 1  # and its registration
        before = set(TOWERS)
        exec(compile(code, EXAMPLE, "exec"), {"__name__": "example"})
        (added,) = set(TOWERS) - before
        yield TOWERS[added]


@pytest.fixture(scope="module")
def folder(kind: type[VisionTower], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that class."""
    return write_tower(kind, tmp_path_factory.mktemp("tower") / kind.__name__)


def make(folder: Path, **fields: Any) -> VisionTower:
    arguments = {"mm_vision_tower": str(folder), "mm_vision_select_layer": -2, **fields}
    delay_load = arguments.pop("delay_load", False)
    return build_vision_tower(SimpleNamespace(**arguments), delay_load=delay_load)


def pixels(tower: VisionTower, n: int = 1) -> torch.Tensor:
    """Return n random images for a tower."""
    return tiny.pixels(n, 3, tower.input_size, tower.input_size)


def judge(kind: type[VisionTower], folder: Path, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the hidden states (N, tokens, C) of transformers' own model."""
    model = kind.model_class.from_pretrained(folder, dtype=torch.float32).eval()
    if kind.__name__ != "NaflexVisionTower":
        states = model(images, output_hidden_states=True).hidden_states
        return [one.flatten(2).transpose(1, 2) if one.dim() == 4 else one for one in states]
    patches, side = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH), images.shape[-1] // PATCH
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images), side**2, -1)  # row, column, channel
    shapes, mask = torch.tensor([[side, side]] * len(images)), torch.ones(len(images), side**2)
    output = model(patches, pixel_attention_mask=mask, spatial_shapes=shapes, output_hidden_states=True)
    return list(output.hidden_states)


@pytest.mark.parametrize("layer", [-1, -2, 0, 2])
def test_features_are_those_of_transformers(kind: type[VisionTower], folder: Path, layer: int) -> None:
    """The judge is the whole model with all its hidden states."""
    tower = make(folder, mm_vision_select_layer=layer)
    images = pixels(tower, 2)
    with torch.no_grad():
        states = judge(kind, folder, images)
        features = tower(images)
    assert torch.equal(features, states[layer][:, tower.prefix_tokens :])
    if not hasattr(tower.config, "hidden_sizes"):  # whose states are maps
        assert torch.equal(tower.feature_select(SimpleNamespace(hidden_states=states)), features)
    assert len(states) == LAYERS + 1
    assert features.shape == (2, tower.tokens_per_tile, tower.hidden_size)
    assert tower.num_patches == states[layer].shape[1] - tower.prefix_tokens  # the real count of tokens
    assert tower.dummy_feature.shape == (1, tower.hidden_size)
    others = [one for index, one in enumerate(states) if index != layer % len(states)]
    assert not any(torch.equal(one, states[layer]) for one in others)


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_layers_behind_are_read_when_they_are_asked_for(folder: Path, layer: int) -> None:
    """Loaded without them: the same features, and the whole model as soon as something wants it."""
    whole, tower = (make(folder, mm_vision_select_layer=layer, delay_load=True) for _ in range(2))
    whole.load_model()
    tower.load_model(whole=False)
    needed = layer % (LAYERS + 1)
    behind = [f"{tower.layers}.{index}." for index in range(max(1, needed), LAYERS)]  # the first stays
    assert not any(one in name for one in behind for name, _ in tower.named_parameters())
    assert all(any(one in name for name in tower.unread) for one in behind)
    images = pixels(tower)
    with torch.no_grad():
        assert torch.equal(tower(images), whole(images))
        if needed < LAYERS:
            assert len(dict(tower.named_parameters())) < len(dict(whole.named_parameters()))
        assert torch.equal(tower.hidden_state(images, -1), whole.hidden_state(images, -1))
    states = tower.state_dict()
    assert states.keys() == whole.state_dict().keys()
    assert all(torch.equal(value, states[name]) for name, value in whole.state_dict().items())


def test_the_processor_makes_tiles(folder: Path) -> None:
    """Without a processor file: the defaults of its class at the tower's size, on PIL."""
    tower = make(folder)
    processor, edge = tower.image_processor, tower.tile_size
    assert type(processor).__name__.endswith("Pil")
    from PIL import Image

    pixels = processor.preprocess(Image.new("RGB", (50, 31)), return_tensors="pt")["pixel_values"]
    assert tuple(torch.as_tensor(pixels).shape) == (1, 3, edge, edge)
    scaled = make(folder, s2=True, s2_scales=f"{edge},{2 * edge}").image_processor
    pixels = scaled.preprocess(Image.new("RGB", (50, 31)), return_tensors="pt")["pixel_values"]
    assert tuple(torch.as_tensor(pixels).shape) == (1, 3, 2 * edge, 2 * edge)


def test_two_scales_side_by_side(kind: type[VisionTower], folder: Path) -> None:
    tower = make(folder)
    edge, width = tower.tile_size, tower.hidden_size
    scaled, images = (
        make(folder, s2=True, s2_scales=f"{edge},{2 * edge}"),
        tiny.pixels(1, 3, 2 * edge, 2 * edge),
    )
    features = scaled(images)
    assert isinstance(scaled, kind)
    assert type(scaled).__name__ == f"{kind.__name__}S2"
    assert features.shape == (1, scaled.num_patches, scaled.hidden_size) == (1, tower.num_patches, 2 * width)
    small = torch.nn.functional.interpolate(images, size=(edge, edge), mode="bicubic")
    torch.testing.assert_close(features[..., :width], tower(small), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features[..., :width], features[..., width:])


def test_only_what_is_used_trains(folder: Path) -> None:
    tower = make(folder)
    tower.unfreeze()
    tower(pixels(tower)).square().sum().backward()
    trained = {name for name, one in tower.named_parameters() if one.requires_grad}
    assert trained == {name for name, one in tower.named_parameters() if one.grad is not None}
    assert any(f"{tower.layers}.2." in name for name in trained)
    assert not any(
        f"{tower.layers}.3." in name or "post_layernorm" in name or "head." in name for name in trained
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return tiny.llava_model("llama", folder)


def test_a_model_trains_saves_and_loads(
    model: Any, kind: type[VisionTower], vicuna: Path, tmp_path: Path
) -> None:
    """Two steps of everything, tower too; names on disk are the reference's; all loaders give the same."""
    ids, images = tiny.prompt(3, "image", 4), pixels(model.get_vision_tower())
    model.get_vision_tower().unfreeze()
    losses = tiny.train_two_steps(model, ids, images)
    assert losses[1] < losses[0]
    model.eval().config.unfreeze_mm_vision_tower = True
    with torch.no_grad():
        logits = model(input_ids=ids, images=images).logits
        assert logits.shape[1] == 7 + model.get_vision_tower().tokens_per_tile
    model.save_pretrained(tmp_path / "llava")
    stored = [name for name in load_weights(tmp_path / "llava") if "vision_tower" in name]
    prefix = "model.vision_tower.vision_tower.vision_model."
    own = model.get_vision_tower().vision_tower.vision_model.state_dict()
    assert set(stored) == {prefix + name for name in own}
    if kind.__name__ in ("CLIPVisionTower", "SiglipVisionTower"):  # the names of published checkpoints
        assert f"{prefix}encoder.layers.0.self_attn.q_proj.weight" in stored
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "llava", dtype=torch.float32)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "llava" / name).write_bytes((vicuna / name).read_bytes())
    _, loaded, processor, _ = load_pretrained_model(
        str(tmp_path / "llava"), None, "llava", device="cpu", dtype=torch.float32
    )
    assert type(processor) is model.get_vision_tower().processor_class
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids, images=images).logits, logits)
    assert torch.equal(loaded.get_vision_tower()(images), model.get_vision_tower()(images))


def test_a_device_map_keeps_every_tower_whole(model: Any, kind: type[VisionTower]) -> None:
    assert {kind.__name__, f"{kind.__name__}S2"} <= set(tower_class_names())
    assert set(tower_class_names()) < set(model._no_split_modules)


def test_the_cls_token_is_kept(kind: type[VisionTower], folder: Path) -> None:
    tower = make(folder, mm_vision_select_feature="cls_patch")
    assert tower(pixels(tower)).shape[1] == tower.tokens_per_tile == tower.num_patches + tower.prefix_tokens


def test_a_two_sided_model_serves_as_tower(kind: type[VisionTower], folder: Path, tmp_path: Path) -> None:
    """A folder with a text half: `vision_config` inside, names under `vision_model.`."""
    from llava.model.checkpoints.files import save_tensors

    model_type, *others = sorted(name for name, value in TOWERS.items() if value is kind)
    if not others:
        pytest.skip("it has no text half")
    vision = json.loads((folder / "config.json").read_text())
    content = {"model_type": model_type, "vision_config": vision, "text_config": {"num_hidden_layers": 1}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    weights = {f"vision_model.{name}": value for name, value in load_weights(folder).items()}
    save_tensors({**weights, "text_model.x": torch.zeros(2)}, tmp_path / "model.safetensors")
    images = pixels(make(folder))
    assert torch.equal(make(tmp_path)(images), make(folder)(images))
