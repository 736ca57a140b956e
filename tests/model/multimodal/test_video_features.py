"""Videos become the features that transformers' LlavaOnevision and LlavaNextVideo make of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from test_features import EDGE, IMAGE, hf_model, our_model, text_config
from transformers import (
    CLIPVisionConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.media import arranged, process_media
from llava.model.multimodal.video import count_video_features, join_frames, pool_frames, video_places
from llava.utils import UserError
from llava.video import Video

FRAMES = 5


@torch.no_grad()
def test_onevisions_videos_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = hf_model("anyres_max_9")
    ours = our_model(theirs, tmp_path, "anyres_max_9")
    video = torch.randn(FRAMES, 3, EDGE, EDGE)
    expected = theirs.model.get_video_features(video[None]).pooler_output[0]
    features = ours.image_features([video], None, ["video"])[0]
    if len(expected) == FRAMES * 4:  # older ones append the newline later
        expected = torch.cat([expected.reshape(-1, 32), theirs.model.image_newline[None]])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    counted = count_video_features(FRAMES, settings=MultimodalConfig.of(ours.config), patches_per_side=4)
    assert len(features) == counted == FRAMES * 4 + 1
    ids = torch.tensor([[5, 6, tiny.IMAGE, 7, 8]])
    filled = torch.cat([ids[0, :2], torch.full((len(features),), theirs.config.video_token_id), ids[0, 3:]])
    theirs.get_input_embeddings().weight.data = theirs.get_input_embeddings().weight.data.clone()
    logits = ours(input_ids=ids, images=[video], modalities=["video"]).logits
    if theirs.config.video_token_id < 96:
        judged = theirs(input_ids=filled[None], pixel_values_videos=video[None]).logits
        assert (logits - judged).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("mode", ["average", "max"])
def test_next_videos_are_those_of_transformers(tmp_path: Path, mode: str) -> None:
    """LLaVA-NeXT-Video pools before its projector."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=EDGE,
        patch_size=7,
    )  # fmt: skip
    config = LlavaNextVideoConfig(
        vision_config=vision, text_config=text_config(), image_grid_pinpoints=[[56, 28]],
        image_token_index=IMAGE, video_token_index=94, spatial_pool_mode=mode,
    )  # fmt: skip
    theirs = LlavaNextVideoForConditionalGeneration(config).eval()
    for value in theirs.parameters():
        value.add_(torch.randn_like(value) * 0.1)
    ours = our_model(theirs, tmp_path, "anyres")
    ours.config.mm_resampler_type = "spatial_pool"
    ours.config.mm_spatial_pool_mode = mode
    ours.config.mm_newline_position = "no_token"
    video = torch.randn(FRAMES, 3, EDGE, EDGE)
    expected = (
        theirs.model.get_video_features(video[None]).pooler_output[0].reshape(-1, 32)
    )  # older: (5, 4, 32)
    features = ours.image_features([video], None, ["video"])[0]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    ids = torch.tensor([[5, tiny.IMAGE, 7, 8]])
    filled = torch.cat([ids[0, :1], torch.full((len(features),), 94), ids[0, 2:]])[None]
    logits = ours(input_ids=ids, images=[video], modalities=["video"]).logits
    judged = theirs(input_ids=filled, pixel_values_videos=video[None]).logits
    assert (logits - judged).abs().max() <= 1e-5
    ours.config.mm_resampler_type = None
    assert not torch.allclose(ours.image_features([video], None, ["video"])[0], expected, atol=1e-4)


@torch.no_grad()
def test_an_image_and_a_video_in_one_batch_are_those_of_each_alone(tmp_path: Path) -> None:
    ours = our_model(hf_model("anyres_max_9"), tmp_path, "anyres_max_9")
    image, video = torch.randn(1, 3, EDGE, EDGE), torch.randn(3, 3, EDGE, EDGE)
    for first in (None, "spatial_pool"):
        ours.config.mm_resampler_type = first
        both = ours.image_features([image, video], [(9, 9), (9, 9)], ["image", "video"])
        alone = [
            ours.image_features([image], [(9, 9)])[0],
            ours.image_features([video], None, ["video"])[0],
        ]
        for one, other in zip(both, alone, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


# ---- where newlines stand


def settings_of(**fields: Any) -> MultimodalConfig:
    return MultimodalConfig.of(SimpleNamespace(mm_patch_merge_type="spatial_unpad", **fields))


NEWLINE = torch.tensor([-1.0])


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("grid", [0, 1, -1, 2, 3, -1, 4, 5, -1, 6, 7, -1]),
        ("frame", [0, 1, 2, 3, -1, 4, 5, 6, 7, -1]),
        ("one_token", [0, 1, 2, 3, 4, 5, 6, 7, -1]),
        ("no_token", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_newlines_stand_where_the_config_says(position: str, expected: list[int]) -> None:
    frames = torch.arange(8.0).view(2, 4, 1)
    settings = settings_of(mm_newline_position=position)
    assert join_frames(frames, settings, NEWLINE).flatten().tolist() == expected


@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("position", ["grid", "frame", "one_token", "no_token"])
@pytest.mark.parametrize("merge", ["flat", "spatial_unpad"])
def test_lengths_of_videos(mode: str, stride: int, position: str, merge: str) -> None:
    for side in (3, 4, 7):
        settings = MultimodalConfig.of(
            SimpleNamespace(
                mm_patch_merge_type=merge, mm_spatial_pool_mode=mode, mm_spatial_pool_stride=stride,
                mm_newline_position=position,
            )
        )  # fmt: skip
        pooled = pool_frames(torch.randn(3, side**2, 2), side, settings)
        joined = join_frames(pooled, settings, torch.ones(2))
        assert len(joined) == count_video_features(3, settings=settings, patches_per_side=side)


# ---- what is refused


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("mm_spatial_pool_mode", "conv", "average, max, bilinear"),
        ("mm_spatial_pool_stride", 0, "above 0"),
        ("mm_newline_position", "line", "grid, frame, one_token, no_token"),
        ("mm_resampler_type", "perceiver", "spatial_pool"),
        ("add_faster_video", True, "not known"),
    ],
)
def test_settings_of_videos_that_are_not_known_are_refused(field: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        MultimodalConfig.checked({field: value, "mm_hidden_size": 4})
    assert field in str(caught.value)


def test_modalities_that_do_not_fit_are_refused() -> None:
    assert video_places(["image", "video"], 2) == {1}
    assert video_places(["image"], 3) == video_places(None, 3) == set()
    for modalities, count in ((["video"], 2), (["audio"], 1)):
        with pytest.raises(UserError, match="modalities has .* expected 'image' or 'video'"):
            video_places(modalities, count)


def test_several_images_are_padded_squares_where_the_model_was_trained_so() -> None:
    from transformers import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": EDGE, "width": EDGE})
    images = [Image.new("RGB", (90, 30), "red"), Image.new("RGB", (28, 28), "blue")]
    common = {"image_grid_pinpoints": "(1x1),...,(3x3)", "mm_patch_merge_type": "spatial_unpad"}
    capped = SimpleNamespace(image_aspect_ratio="anyres_max_4", **common)
    tiled = SimpleNamespace(image_aspect_ratio="anyres", **common)
    trained_by_next = SimpleNamespace(**vars(tiled), mm_tunable_parts="mm_mlp_adapter")
    for config, together, lengths in (
        (capped, True, [1, 1]),
        (trained_by_next, True, [1, 1]),
        (tiled, True, [4, 2]),
        (capped, False, [4, 2]),
    ):  # fmt: skip
        pixels, modalities = process_media(
            arranged(images, config) if together else images, processor, config
        )
        assert [len(one) for one in pixels] == lengths and modalities is None
    alone, _ = process_media(arranged(images[:1], capped), processor, capped)
    assert len(alone[0]) == 4
    mixed, modalities = process_media([images[1], Video(tuple(images[1:]) * 3)], processor, tiled)
    assert modalities == ["image", "video"] and [len(one) for one in mixed] == [2, 3]
