"""Images of newer LLaVAs become the features that transformers' LlavaOnevision and LlavaNext make of them."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from llava.mm_utils import get_anyres_image_grid_shape, parse_grid_pinpoints, process_images
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.features import count_features, merge_tiles
from llava.utils import UserError

EDGE, SIDE = 28, 4  # pixels of a tile and its patches along an edge
RANGE = "(1x1),...,(6x6)"
GRIDS = [[across * EDGE, down * EDGE] for across in range(1, 7) for down in range(1, 7)]
SIZES = [(20, 25), (150, 50), (28, 166), (160, 120), (168, 168), (250, 20), (500, 450), (61, 228)]
IMAGE = 95  # of transformers' model
JUDGES = {
    "anyres_max_9": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration),
    "anyres": (LlavaNextConfig, LlavaNextForConditionalGeneration),
}


def text_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip


def hf_model(rule: str) -> Any:
    """A random model of transformers, with noise on every weight."""
    config_class, model_class = JUDGES[rule]
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=EDGE,
        patch_size=7, vision_use_head=False,
    )  # fmt: skip
    config = config_class(
        vision_config=vision, text_config=text_config(), image_grid_pinpoints=[grid[::-1] for grid in GRIDS],
        image_token_index=IMAGE, vision_feature_layer=-2, vision_feature_select_strategy="full",
    )  # fmt: skip
    model = model_class(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model.eval()


def our_model(theirs: Any, folder: Path, rule: str) -> Any:
    """A LLaVA with the weights of transformers' model."""
    theirs.model.vision_tower.save_pretrained(folder)
    ours = tiny.llava_model(
        "llama", folder, image_aspect_ratio=rule, image_grid_pinpoints=RANGE,
        mm_patch_merge_type="spatial_unpad",
    )  # fmt: skip
    names = {
        "model.language_model.": "model.",
        "model.multi_modal_projector.linear_1": "model.mm_projector.0",
        "model.multi_modal_projector.linear_2": "model.mm_projector.2",
    }
    weights = {}
    for name, value in theirs.state_dict().items():
        if "vision_tower" not in name:
            for old, new in names.items():
                name = name.replace(old, new)
            weights[name] = value
    found = ours.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys and all("vision_tower" in one for one in found.missing_keys)
    return ours


@pytest.fixture(scope="module", params=JUDGES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    theirs = hf_model(request.param)
    return our_model(theirs, tmp_path_factory.mktemp("tower"), request.param), theirs


@torch.no_grad()
def test_features_and_logits_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    """From 1 to 36 tiles, some of them above the cap."""
    ours, theirs = pair
    counts, capped = set(), 0
    for width, height in SIZES:
        columns, rows = get_anyres_image_grid_shape((width, height), RANGE, EDGE)
        counts.add(columns * rows)
        tiles = torch.randn(1 + columns * rows, 3, EDGE, EDGE)
        sizes = torch.tensor([[height, width]])
        features = ours.image_features([tiles], [(width, height)])[0]
        expected = theirs.model.get_image_features(tiles[None], image_sizes=sizes).pooler_output[0]
        assert torch.equal(features, expected)
        capped += len(features) < SIDE**2 + columns * rows * SIDE**2 * 0.5
        ids = torch.tensor([[5, 6, tiny.IMAGE, 7, 8]])
        filled = torch.cat([ids[0, :2], torch.full((len(features),), IMAGE), ids[0, 3:]])[None]
        logits = ours(input_ids=ids, images=[tiles], image_sizes=[(width, height)]).logits
        judged = theirs(input_ids=filled, pixel_values=tiles[None], image_sizes=sizes).logits
        assert (logits - judged).abs().max() <= 1e-5
    assert {1, 36} <= counts and len(counts) > 4
    assert capped == 0 or ours.config.image_aspect_ratio == "anyres_max_9"


def test_one_image_among_several_is_a_square(pair: tuple[Any, Any]) -> None:
    """Its tiles are the overview alone, behind which a newline stands."""
    ours, theirs = pair
    if ours.config.image_aspect_ratio == "anyres":
        pytest.skip("LlavaNext cuts every image")
    pixels = torch.randn(2, 1, 3, EDGE, EDGE)
    sizes = [(50, 40), (20, 90)]
    with torch.no_grad():
        features = ours.image_features(pixels, sizes)
        hf_sizes = torch.tensor([size[::-1] for size in sizes])
        expected = theirs.model.get_image_features(
            pixels[:, 0], image_sizes=hf_sizes, batch_num_images=torch.tensor([2])
        ).pooler_output
    assert all(torch.equal(one, other) for one, other in zip(features, expected, strict=True))


# ---- lengths


def fields(**changes: Any) -> MultimodalConfig:
    values = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": RANGE, **changes}
    return MultimodalConfig.of(SimpleNamespace(**values))


@pytest.mark.slow
def test_lengths_are_transformers_own_on_20000_sizes() -> None:
    settings = fields(image_aspect_ratio="anyres_max_9", mm_patch_merge_type="spatial_unpad")
    pinpoints = [(grid[1] // EDGE * 384, grid[0] // EDGE * 384) for grid in GRIDS]
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints), num_image_tokens=27**2,
        vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    processor._get_unpadded_features = lambda *a: LlavaOnevisionProcessor._get_unpadded_features(
        processor, *a
    )
    drawn, differ = random.Random(0), []
    for _ in range(20_000):
        size = drawn.randrange(20, 2500), drawn.randrange(20, 2500)
        ours = count_features(size, settings=settings, patches_per_side=27, extra=0, tile_size=384)
        if ours != LlavaOnevisionProcessor._get_number_of_features(processor, *size[::-1], 384, 384):
            differ.append(size)
    # 832 * 135 / 1872 is 60, of which floating point makes 59.99...; LLaVA cuts to 59, transformers rounds
    assert differ == [(1872, 832)]


MERGES = ("flat", "spatial", "spatial_unpad", "spatial_nobase", "spatial_unpad_nobase", "spatial_maxpool2x2")


@pytest.mark.parametrize("merge", [*MERGES, "spatial_unpad_maxpool2x2", "capped"])
@pytest.mark.parametrize("side", [3, 4])
def test_lengths_are_those_of_merged_tiles(merge: str, side: int) -> None:
    settings = fields(mm_patch_merge_type=merge)
    if merge == "capped":
        settings = fields(image_aspect_ratio="anyres_max_2", mm_patch_merge_type="spatial_unpad")
    drawn = random.Random(side)
    for _ in range(60):
        size = drawn.randrange(1, 400), drawn.randrange(1, 400)
        columns, rows = get_anyres_image_grid_shape(size, RANGE, EDGE)
        merged = merge_tiles(
            torch.zeros(1 + columns * rows, side**2, 2), size, settings=settings, patches_per_side=side,
            tile_size=EDGE, image_newline=torch.ones(2),
        )  # fmt: skip
        counted = count_features(size, settings=settings, patches_per_side=side, extra=0, tile_size=EDGE)
        assert len(merged) == counted


def plane_of(columns: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of an overview (-1) and tiles that hold their own places, and the plane they form."""
    y, x = torch.meshgrid(torch.arange(rows * SIDE), torch.arange(columns * SIDE), indexing="ij")
    plane = torch.stack((y, x), -1).float()
    tiles = plane.view(rows, SIDE, columns, SIDE, 2).permute(0, 2, 1, 3, 4).reshape(-1, SIDE**2, 2)
    return torch.cat((torch.full((1, SIDE**2, 2), -1.0), tiles)), plane


def merged(merge: str) -> tuple[torch.Tensor, torch.Tensor]:
    features, plane = plane_of(3, 2)
    settings = fields(mm_patch_merge_type=merge, image_grid_pinpoints="(3x2)")
    return merge_tiles(
        features, (3 * EDGE, 2 * EDGE), settings=settings, patches_per_side=SIDE, tile_size=EDGE,
        image_newline=torch.tensor([-7.0, -7.0]),
    ), plane  # fmt: skip


def test_nobase_omits_the_overview_alone() -> None:
    for merge in ("spatial", "spatial_unpad"):
        whole, _ = merged(merge)
        assert torch.equal(merged(f"{merge}_nobase")[0], whole[SIDE**2 :])


def test_maxpool_keeps_the_largest_of_four() -> None:
    got, plane = merged("spatial_maxpool2x2")
    assert torch.equal(got[SIDE**2 :], plane[1::2, 1::2].reshape(-1, 2))
    assert (got[: SIDE**2] == -1).all()


# ---- grids as text, and what is refused


def test_ranges_of_grids_are_all_shapes_in_them() -> None:
    assert parse_grid_pinpoints(RANGE, EDGE) == [tuple(grid) for grid in GRIDS]
    assert parse_grid_pinpoints("(1x2), ... ,(2x3)", 10) == [(10, 20), (10, 30), (20, 20), (20, 30)]
    assert parse_grid_pinpoints("(1x2),(2x1)", 10) == [(10, 20), (20, 10)]


@pytest.mark.parametrize(
    "text",
    ["(1x1),...", "...,(2x2)", "(2x2),...,(1x1)", "(0x1),...,(2x2)", "(1x1)...(2x2)", "1x1", "(1x1),(2,2)",
     "(1x1),...,(2x2),...,(3x3)", "(1x)", "(1x1),...,(99999x2)", "(axb)"],
)  # fmt: skip
def test_grids_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="image_grid_pinpoints is .* expected .*1x1.,...,.6x6"):
        parse_grid_pinpoints(text, EDGE)


BAD_RULES = (
    "anyres_max_",
    "anyres_max_0",
    "anyres_max_x",
    "anyres_max_9.5",
    "highres",
    "crop_split",
    "Pad",
    3,
)


@pytest.mark.parametrize("rule", BAD_RULES)
def test_a_rule_that_is_not_known_never_gives_a_square(rule: Any) -> None:
    from PIL import Image

    processor = SimpleNamespace(size={"height": EDGE, "width": EDGE}, preprocess=None)
    with pytest.raises(UserError, match="image_aspect_ratio is .* anyres_max_N"):
        process_images([Image.new("RGB", (5, 5))], processor, SimpleNamespace(image_aspect_ratio=rule))
    with pytest.raises(UserError, match="image_aspect_ratio is"):
        MultimodalConfig.checked({"image_aspect_ratio": rule, "mm_hidden_size": 4})


@pytest.mark.parametrize(
    "merge", ["spatial_unpad_anyres", "flat_unpad", "unpad", "spatial_unpad_unpad", "", 3]
)
def test_a_merge_that_is_not_known_is_refused(merge: Any) -> None:
    with pytest.raises(UserError, match="mm_patch_merge_type is .* expected flat, spatial"):
        MultimodalConfig.checked({"mm_patch_merge_type": merge, "mm_hidden_size": 4})


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_maxpool2x2", "spatial_unpad_maxpool2x2"])
def test_a_cap_that_no_merge_applies_is_refused(merge: str) -> None:
    config = {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": merge, "mm_hidden_size": 4}
    with pytest.raises(UserError, match="anyres_max_9.*unpadded.*expected spatial_unpad"):
        MultimodalConfig.checked(config)
