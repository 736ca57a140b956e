"""convert_hf with OneVision, NeXT on Llama 3 and Qwen, and NeXT-Video: images and videos, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_folders import changed_copy, weights
from layouts import LAYOUTS, SIGLIP, known_towers, write_layout
from text_data import make_image

import llava
from llava.model.checkpoints.files import CheckpointError, load_weights, read_config
from llava.model.conversion.parity import Report
from llava.model.convert_hf import from_hf, to_hf, write_mmproj
from llava.video import video_of_images

KINDS = {
    "onevision-7b": "LlavaOnevisionForConditionalGeneration",
    "onevision-0.5b": "LlavaOnevisionForConditionalGeneration",
    "next-llama3": "LlavaNextForConditionalGeneration",
    "next-qwen": "LlavaNextForConditionalGeneration",
    "next-video-7b": "LlavaNextVideoForConditionalGeneration",
}
WITH_VIDEO = ("onevision-7b", "onevision-0.5b", "next-video-7b")


@pytest.fixture(scope="module", autouse=True)
def towers() -> Iterator[None]:
    with known_towers():
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, towers: None) -> Callable[[str], tuple[Path, Report]]:
    """Write a layout and export it, once: the root of both folders, and the report."""
    root = tmp_path_factory.mktemp("newer")

    def make(name: str) -> tuple[Path, Report]:
        source = write_layout(name, root / name / "llava")
        report = to_hf(str(source), root / name / "hf", conv_mode=LAYOUTS[name].template)
        assert report is not None
        return root / name, report

    return cache(make)


@pytest.mark.parametrize("name", KINDS)
def test_images_and_videos_are_those_of_transformers(name: str, exported: Any) -> None:
    root, report = exported(name)
    assert report.passed and report.logit_difference <= 1e-5 and report.largest_logit > 0.1
    assert report.pixel_difference == 0 and not report.texts_different
    assert (report.video_difference is not None) == (name in WITH_VIDEO)
    assert (report.video_difference or 0) <= 1e-5
    content = json.loads((root / "hf" / "config.json").read_text())
    assert content["architectures"] == [KINDS[name]]
    assert not [
        one for one in content["text_config"] if one.startswith(("mm_", "image_", "frames", "video_"))
    ]
    if name.startswith("onevision"):
        assert content["vision_config"]["num_hidden_layers"] == 2
        assert content["vision_feature_layer"] == -1 and content["vision_aspect_ratio"] == "anyres_max_9"
        assert (root / "hf" / "video_preprocessor_config.json").is_file()
        processor = json.loads((root / "hf" / "processor_config.json").read_text())
        assert processor["num_image_tokens"] == 16 and processor["video_token"] == "<video>"


@pytest.mark.parametrize("name", ["onevision-0.5b", "next-llama3", "next-video-7b"])
def test_the_tokenizers_own_template_is_exported(name: str, tmp_path: Path) -> None:
    """Templates without and with a start token, in front alone (Llama 3) or in every turn (Llama 2)."""
    source = write_layout(name, tmp_path / "llava")
    report = to_hf(str(source), tmp_path / "hf", conv_mode="chat_template")
    assert report is not None and report.passed and report.prompt_equal and report.ids_equal
    assert (tmp_path / "hf" / "chat_template.jinja").is_file()


@pytest.mark.parametrize("tower", ["own folder", "named"])
@pytest.mark.parametrize("name", KINDS)
def test_the_way_back(name: str, tower: str, exported: Any, tmp_path: Path) -> None:
    root, _ = exported(name)
    named = LAYOUTS[name].fields["mm_vision_tower"] if tower == "named" else None
    report = from_hf(str(root / "hf"), tmp_path / "back", vision_tower=named)
    assert report is not None and report.passed
    assert (report.video_difference is not None) == (name in WITH_VIDEO)
    before, after = load_weights(root / "llava"), load_weights(tmp_path / "back")
    for key, value in after.items():
        assert torch.equal(value, before[key][: len(value)]), key
    assert any("vision_tower" in key for key in after) == (named is not None)
    settings = {"temperature": 0, "max_new_tokens": 5}
    images = [make_image({"w": 60, "h": 40, "seed": seed}) for seed in (1, 2)]
    asked = [video_of_images(images)] if name in WITH_VIDEO else images[:1]
    answers = [
        llava.load(path, template=LAYOUTS[name].template, device="cpu", dtype="float32").chat(
            "a", asked, **settings
        )
        for path in (root / "llava", tmp_path / "back")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["onevision-7b", "next-video-7b"])
def test_a_folder_of_the_hub_says_less(name: str, exported: Any, tmp_path: Path) -> None:
    """Without LLaVA's own config, and with the defaults of transformers left out."""
    root, _ = exported(name)
    source = changed_copy(
        root / "hf", tmp_path / "hf", vision_feature_layer=None if name == "onevision-7b" else -2,
        projector_hidden_act=None, multimodal_projector_bias=None, spatial_pool_mode=None,
        spatial_pool_stride=None, vision_aspect_ratio=None,
    )  # fmt: skip
    (source / "llava_config.json").unlink()
    report = from_hf(str(source), tmp_path / "back", conv_mode=LAYOUTS[name].template)
    assert report is not None and report.passed and report.video_difference is not None
    content = read_config(tmp_path / "back")
    expected = LAYOUTS[name].fields
    for field in ("image_aspect_ratio", "mm_spatial_pool_mode", "mm_newline_position", "mm_resampler_type"):
        assert content.get(field) == expected.get(field), field


def test_a_wrong_video_fails_the_comparison(exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    root, _ = exported("onevision-0.5b")
    from llava.model.conversion import parity
    from llava.model.conversion.parity import ParityError

    made = parity._ask_video_model

    def other(*args: Any) -> Any:
        seen = made(*args)
        seen.video_logits = seen.video_logits + 1e-3
        return seen

    monkeypatch.setattr(parity, "_ask_video_model", other)
    with pytest.raises(ParityError, match="video        max .difference. 1.00e-03"):
        to_hf(str(root / "llava"), tmp_path / "hf", conv_mode="qwen_1_5")
    assert not (tmp_path / "hf").exists()


# ---- what has no class there


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("video-7b", {}, "frames are pooled by bilinear, 2 to one, with mm_newline_position 'grid'"),
        ("onevision-7b", {"mm_spatial_pool_mode": "average"}, "those of LlavaOnevision by bilinear"),
        ("onevision-7b", {"mm_spatial_pool_stride": 3}, "3 to one"),
        ("next-video-7b", {"mm_newline_position": "frame"}, "those of LlavaNextVideo by average or max"),
        (
            "interleave",
            {},
            "'siglip_vision_model'.* for LlavaNextForConditionalGeneration convert_hf knows CLIP",
        ),
        ("next-qwen", {"mm_patch_merge_type": "spatial_unpad_nobase"}, "they know flat and spatial_unpad"),
    ],
)
def test_what_no_class_holds_is_refused(name: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = write_layout(name, tmp_path / "llava")
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**content, **fields}))
    with pytest.raises(CheckpointError, match=said) as caught:
        to_hf(str(source), tmp_path / "hf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vision_feature_select_strategy": "default"}, "drops the first patch of every tile"),
        ({"vision_feature_layer": [-1, -2]}, "it uses several layers"),
        ({"text_config": {"model_type": "gemma3n_text"}}, "its language model is 'gemma3n_text'"),
        ({"vision_config": {"model_type": "dinov2"}}, "its vision tower is 'dinov2'; known: siglip"),
    ],
)
def test_what_llava_does_not_hold_is_refused(fields: Any, said: str, exported: Any, tmp_path: Path) -> None:
    root, _ = exported("onevision-0.5b")
    source = changed_copy(root / "hf", tmp_path / "hf", **fields)
    with pytest.raises(CheckpointError, match=said):
        from_hf(str(source), tmp_path / "back")


def test_llama_cpp_gets_no_onevision(exported: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    root, _ = exported("onevision-0.5b")
    with pytest.raises(CheckpointError, match="is a LlavaOnevisionForConditionalGeneration, which llama.cpp"):
        write_mmproj(str(root / "hf"), tmp_path / "a.gguf")
    assert SIGLIP in json.dumps(read_config(root / "llava")) and weights(root / "hf")
