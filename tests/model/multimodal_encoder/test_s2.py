"""The S2 tower: tiling, scales side by side, the sizes that fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.nn.functional as F

from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTowerS2
from llava.model.multimodal_encoder.s2 import merge_tiles, split_tiles
from llava.utils import UserError


def make(tower, scales="28,56,84", **fields):
    defaults = {"mm_vision_tower": str(tower), "mm_vision_select_layer": -2, "s2": True, "s2_scales": scales}
    kwargs = {"delay_load": fields.pop("delay_load")} if "delay_load" in fields else {}
    return build_vision_tower(SimpleNamespace(**{**defaults, **fields}), **kwargs)


@pytest.mark.parametrize("per_side", [1, 2, 3])
def test_split_and_merge_are_inverse(per_side):
    images = torch.randn(2, 3, 12, 12)
    tiles = split_tiles(images, per_side)
    assert tiles.shape == (2 * per_side**2, 3, 12 // per_side, 12 // per_side)
    assert torch.equal(merge_tiles(tiles, per_side), images)


def test_tiles_go_line_by_line_each_with_the_whole_batch():
    """The order of the reference's package: tile (row, column) of every image, then the next tile."""
    images = torch.arange(2 * 16).view(2, 1, 4, 4)
    tiles = split_tiles(images, 2)
    assert torch.equal(tiles[0], images[0, :, :2, :2])
    assert torch.equal(tiles[1], images[1, :, :2, :2])
    assert torch.equal(tiles[2], images[0, :, :2, 2:])
    assert torch.equal(tiles[4], images[0, :, 2:, :2])


def test_a_single_scale_is_the_plain_tower(tower):
    images = tiny.pixels(2, 3, 28, 28)
    plain = make(tower, s2=False)
    torch.testing.assert_close(make(tower, "28")(images), plain(images), atol=1e-5, rtol=1e-5)


def test_three_scales_side_by_side(tower):
    s2, images = make(tower), tiny.pixels(2, 3, 84, 84)
    got = s2(images)
    assert got.shape == (2, 16, 48) == (2, s2.num_patches, s2.hidden_size)
    assert isinstance(s2, CLIPVisionTowerS2)
    plain = make(tower, s2=False)
    small = F.interpolate(images, size=(28, 28), mode="bicubic")
    torch.testing.assert_close(got[..., :16], plain(small), atol=1e-5, rtol=1e-5)
    # the second scale by hand: four tiles, their 8 x 8 patches averaged 2 x 2
    middle = F.interpolate(images, size=(56, 56), mode="bicubic")
    plane = torch.zeros(2, 8, 8, 16)
    for row in range(2):
        for column in range(2):
            tile = middle[:, :, 28 * row : 28 * (row + 1), 28 * column : 28 * (column + 1)]
            plane[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = plain(tile).view(2, 4, 4, 16)
    pooled = plane.view(2, 4, 2, 4, 2, 16).mean((2, 4)).reshape(2, 16, 16)
    torch.testing.assert_close(got[..., 16:32], pooled, atol=1e-5, rtol=1e-5)


def test_order_of_scales_does_not_matter(tower):
    images = tiny.pixels(1, 3, 84, 84)
    assert torch.equal(make(tower, "84,28,56")(images), make(tower)(images))


def test_lists_and_dtypes(tower):
    s2, images = make(tower), tiny.pixels(2, 3, 84, 84)
    rows = s2(list(images))
    torch.testing.assert_close(torch.cat(rows), s2(images), atol=1e-5, rtol=1e-5)
    half = s2(images.half())
    assert half.dtype == torch.float16
    assert (half.float() - s2(images)).abs().mean() < 0.05


def test_images_are_made_at_the_largest_scale(tower):
    processor = make(tower).image_processor
    assert processor.size["shortest_edge"] == 84
    assert dict(processor.crop_size) == {"height": 84, "width": 84}
    plain = make(tower, s2=False).image_processor
    assert dict(plain.crop_size) == {"height": 28, "width": 28}


def test_width_is_known_before_loading(tower):
    s2 = make(tower, delay_load=True)
    assert (s2.is_loaded, s2.hidden_size, s2.num_patches) == (False, 48, 16)
    s2.load_model()
    assert s2(tiny.pixels(1, 3, 84, 84)).shape == (1, 16, 48)


def test_a_model_with_an_s2_tower(build):
    model = build("llama", s2=True, s2_scales="28,56", mm_hidden_size=32)
    out = model(input_ids=tiny.prompt(3, "image", 2), images=tiny.pixels(1, 3, 56, 56))
    assert out.logits.shape == (1, 5 + 16, tiny.VOCABULARY)


@pytest.mark.parametrize("scales", ["56,84", "28,40", "14,28", "28,x", ","])
def test_scales_that_do_not_fit(tower, scales):
    with pytest.raises(UserError, match="s2_scales"):
        make(tower, scales)


def test_cls_patch_is_refused(tower):
    with pytest.raises(UserError, match="'cls_patch'.*'patch' features only"):
        make(tower, mm_vision_select_feature="cls_patch")(tiny.pixels(1, 3, 84, 84))


def test_default_scales_are_those_of_a_336_pixel_tower(tower):
    with pytest.raises(UserError, match=r"\[336, 672, 1008\]; this tower sees 28 pixels"):
        make(tower, None)


def test_both_import_paths():
    from llava.model.multimodal_encoder import clip_encoder

    assert clip_encoder.CLIPVisionTowerS2 is CLIPVisionTowerS2
    with pytest.raises(AttributeError, match="NoSuchTower"):
        _ = clip_encoder.NoSuchTower
