"""Tokens that every projector makes of an image: known before, from every place that counts, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from kinds import KINDS, WITHOUT_GRID
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

from llava.inference.model_inputs import encode_images, image_length
from llava.mm_utils import process_images
from llava.model.checkpoints.files import CheckpointError, read_config
from llava.model.multimodal_projector.registry import PROJECTORS
from llava.model.settings import check_settings
from llava.train.checks import check_projector
from llava.train.data.check_settings import CheckSettings
from llava.train.data.tokens import ImageTokens
from llava.utils import UserError

SIZES = [(28, 28), (100, 30), (33, 47), (10, 300)]  # (width, height)
SHAPES = [
    ("square", "flat"),
    ("pad", "flat"),
    ("anyres", "flat"),
    ("anyres", "spatial"),
    ("anyres", "spatial_unpad"),
    ("anyres_max_2", "spatial_unpad"),
    ("anyres", "spatial_maxpool2x2_nobase"),
]


def test_every_kind_is_in_the_tables() -> None:
    for pattern in PROJECTORS:
        assert any(re.fullmatch(pattern, kind) for kind in KINDS), pattern
    page = (Path(__file__).parents[3] / "docs" / "projectors.md").read_text()
    for projector in PROJECTORS.values():
        for name in projector.label.partition(" (")[0].split(" and "):
            assert f"| `{name}` |" in page


@pytest.fixture(scope="module")
def of_kind(build: Callable[..., Any]) -> Callable[[str], Any]:
    """A model with a projector of that kind, built once; tests set what its images are like."""
    models: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in models:
            width = {"hidden_size": 16} if kind == "identity" else {}
            models[kind] = (
                build(mm_projector_type=kind, mm_patch_merge_type="spatial_unpad", **width)
                if (kind not in WITHOUT_GRID)
                else build(mm_projector_type=kind, **width)
            )
        return models[kind]

    return get


def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def doctor(folder: Path, config: Any) -> ImageTokens:
    """The data doctor's count, which reads the projector from the model's config."""
    config.save_pretrained(folder)
    settings = CheckSettings(
        data_path="",
        model_name_or_path=str(folder),
        vision_tower=config.mm_vision_tower,
        image_aspect_ratio=config.image_aspect_ratio,
        mm_patch_merge_type=config.mm_patch_merge_type,
        mm_vision_select_feature=config.mm_vision_select_feature,
    )
    return ImageTokens(settings)


@pytest.mark.parametrize(("aspect", "merge"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_features(
    kind: str, aspect: str, merge: str, of_kind: Callable[[str], Any], tmp_path: Path
) -> None:
    model = of_kind(kind)
    model.config.image_aspect_ratio, model.config.mm_patch_merge_type = aspect, merge
    processor = model.get_vision_tower().image_processor
    if kind in WITHOUT_GRID and merge != "flat":
        for call in (
            lambda: image_length(model, SIZES[0]),
            lambda: doctor(tmp_path, model.config),
            lambda: encode_images(model, processor, images()),
        ):
            with pytest.raises(
                UserError, match=f"'{kind}', whose tokens are no grid.*{merge}.*expected 'flat'"
            ):
                call()
        return
    lengths = [len(one) for one in encode_images(model, processor, images())]
    assert lengths == [image_length(model, size) for size in SIZES]
    counter = doctor(tmp_path, model.config)
    assert lengths == [counter.count(size) for size in SIZES]
    # and in the batch that the LLM gets
    ids = tiny.prompt("image", 3)
    pixels = process_images(images()[1:2], processor, model.config)
    embeds = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, pixels, SIZES[1:2])[4]
    assert embeds.shape[1] == lengths[1] + 3


def siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=28,
            patch_size=7,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def towers(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Config fields of towers of other kinds."""
    folder = tmp_path_factory.mktemp("towers")
    other = siglip(folder / "siglip")
    return {
        "siglip": {"tower": other},
        "fused": {"tower": f"{tower}+{other}", "mm_hidden_size": 32},
        "s2": {"tower": tower, "s2": True, "s2_scales": "28,56", "mm_hidden_size": 32},
        "odd": {"tower": tiny.tower_folder(folder / "odd", image_size=35)},
        "cls_patch": {"tower": tower, "mm_vision_select_feature": "cls_patch"},
    }


@pytest.mark.parametrize("name", ["siglip", "fused", "s2", "odd", "cls_patch"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_other_towers(kind: str, name: str, towers: dict[str, dict[str, Any]]) -> None:
    fields = {**towers[name], "mm_projector_type": kind}
    if kind == "identity":
        fields["hidden_size"] = fields.get("mm_hidden_size", 16)
    model = tiny.llava_model("llama", **fields)
    size = (40, 30)
    refused = (
        name == "cls_patch" and kind.startswith(("avg", "pixel")) or (name == "odd" and "shuffle" in kind)
    )
    if refused:
        with pytest.raises(UserError, match=f"mm_projector_type is '{kind}'"):
            image_length(model, size)
        return
    image = Image.new("RGB", size, (200, 30, 90))
    features = encode_images(model, model.get_vision_tower().image_processor, [image])
    assert [len(one) for one in features] == [image_length(model, size)]
    assert features[0].shape[1] == model.config.hidden_size


# (kind, tower, other fields, what the sentence must hold beside the name of the projector)
REFUSED = [
    ("perceiver1x_17tokens", "", {}, "budget of 17 tokens, and the vision tower gives 16"),
    ("qformer1x_26tokens", "odd", {}, "budget of 26 tokens, and the vision tower gives 25"),
    ("qformer1x_4tokens", "", {"mm_patch_merge_type": "spatial_unpad"}, "no grid.*expected 'flat'"),
    ("pixel_shuffle2x_mlp1x_gelu", "odd", {}, "2 x 2 patches.* has 5 x 5; expected a multiple of 2"),
    ("pixel_shuffle3x_mlp1x_gelu", "", {}, "3 x 3 patches.* has 4 x 4; expected a multiple of 3"),
    ("pixel_shuffle8x_mlp1x_gelu", "", {}, "8 x 8 patches; expected at most 4"),
    ("avg_pool5x_mlp1x_gelu", "", {}, "5 x 5 patches; expected at most 4"),
    ("avg_pool2x_mlp1x_gelu", "", {"mm_vision_select_feature": "cls_patch"}, "'patch', found 'cls_patch'"),
    ("avg_pool4x_mlp1x_gelu", "", {"mm_patch_merge_type": "spatial_maxpool2x2"}, "a grid of 1 x 1.*'flat'"),
    ("mlp2x_relu", "", {}, "mlpNx_gelu.*perceiverDx_Ntokens"),
]


@pytest.mark.parametrize(("kind", "where", "fields", "message"), REFUSED)
def test_loader_and_training_refuse_in_one_sentence(
    kind: str,
    where: str,
    fields: dict[str, Any],
    message: str,
    tower: Path,
    towers: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    place = towers[where]["tower"] if where else tower
    fields = {"mm_projector_type": kind, **fields}
    tiny.llava_config("llama", place, **fields).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        check_settings(read_config(tmp_path), str(tmp_path))
    assert f"{tmp_path}/config.json: " in str(caught.value) and repr(kind) in str(caught.value)
    flags = {"vision_tower": str(place), "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    with pytest.raises(UserError, match=message) as caught:
        check_projector(SimpleNamespace(**flags | fields))
    assert "mm_projector_type" in str(caught.value)


def test_identity_needs_equal_widths(build: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="'identity', and the tower's features are 16 wide, the LLM's 32"):
        build(mm_projector_type="identity")


def test_flags_name_the_projector_of_the_doctor(tower: Path, tmp_path: Path) -> None:
    """A base LLM has no projector; the flag says which one will be trained."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    counts = []
    for kind in (None, "avg_pool2x_mlp2x_gelu", "perceiver2x_6tokens"):
        settings = CheckSettings(
            data_path="", model_name_or_path=str(tmp_path), vision_tower=str(tower), mm_projector_type=kind
        )
        counts.append(ImageTokens(settings).count((30, 30)))
    assert counts == [16, 4, 6]
