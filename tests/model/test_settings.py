"""A checkpoint's multimodal settings: one sentence for each bad one, the same from every program."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import refuse
from transformers import SiglipVisionConfig

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, read_config
from llava.model.multimodal.config import MultimodalConfig, check_grids
from llava.model.settings import check_settings
from llava.model.tools.inspection import inspect_checkpoint

# (field, value found, what the sentence must hold beside field and value)
BAD = [
    ("image_aspect_ratio", "highres", "anyres_max_N"),
    ("image_aspect_ratio", "anyres_max_", "anyres_max_N"),
    ("image_aspect_ratio", "Pad", "square, pad, anyres"),
    ("image_aspect_ratio", 3, "square, pad, anyres"),
    ("image_aspect_ratio", ["pad"], "square, pad, anyres"),
    ("mm_resampler_type", "perceiver", "spatial_pool"),
    ("mm_patch_merge_type", "spatial_base", "flat, spatial or spatial_unpad"),
    ("mm_vision_select_feature", "cls", "patch, cls_patch"),
    ("mm_projector_type", "mlp2x_relu", "linear, mlpNx_gelu"),
    ("mm_projector_type", 2, "a text"),
    ("mm_vision_tower", 7, "folder or hub name of a vision tower"),
    ("mm_vision_tower", ["tiny-clip"], "folder or hub name of a vision tower"),
    ("mm_vision_select_layer", "-2", "whole number"),
    ("mm_vision_select_layer", 1.5, "whole number"),
    ("mm_vision_select_layer", 9, "-5 to 4"),
    ("mm_vision_select_layer", -6, "-5 to 4"),
    ("mm_hidden_size", None, "above 0"),
    ("mm_hidden_size", 48, "32 wide"),
    ("mm_use_im_start_end", "false", "true or false"),
    ("unfreeze_mm_vision_tower", "yes", "true or false"),
    ("tokenizer_padding_side", "middle", "right, left"),
    ("tokenizer_model_max_length", 0, "above 0"),
    ("image_grid_pinpoints", [[56, 112], [60, 112]], "multiples of 56"),
    ("image_grid_pinpoints", [[0, 56]], "multiples of 56"),
    ("image_grid_pinpoints", "[[56, 112", "[[336, 672], [672, 336]]"),
    ("image_grid_pinpoints", "(1x1),...,(6x)", "(1x1),...,(6x6)"),
    ("image_grid_pinpoints", [[56]], "[[336, 672], [672, 336]]"),
    ("image_grid_pinpoints", 56, "[[336, 672], [672, 336]]"),
    ("image_grid_pinpoints", [], "at least one"),
    ("image_grid_pinpoints", "[]", "at least one"),
    ("image_grid_pinpoints", None, "image_grid_pinpoints, and there are none"),
]
IDS = [f"{field}={value}" for field, value, _ in BAD]


@pytest.fixture
def v16(copy: Any, checkpoints: Path) -> Path:
    """A v1.6 checkpoint with its tower's place."""
    folder = copy("llava-tiny-v1.6")
    change(folder, mm_vision_tower=str(checkpoints / "tiny-clip"))
    return folder


def change(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(("field", "value", "expected"), BAD, ids=IDS)
def test_loader_training_and_inspect_say_the_same(field: str, value: Any, expected: str, v16: Path) -> None:
    change(v16, **{field: value})
    found = () if value is None or "grid" in field else (repr(value),)
    refuse(v16, f"{v16}/config.json", field, expected, *found)
    with pytest.raises(CheckpointError) as caught:  # what training calls
        check_settings(read_config(v16), str(v16))
    report = inspect_checkpoint(str(v16))
    assert str(caught.value) in report.problems
    assert not report.can_chat


@pytest.mark.parametrize("value", [0, "32"])
def test_a_width_that_no_model_has(value: Any, v16: Path) -> None:
    """Refused where the file is read, before the settings are looked at."""
    change(v16, mm_hidden_size=value)
    refuse(v16, f"{v16}: config.json", f"mm_hidden_size {value!r}", "a whole number from 1")


def test_absent_and_null_fields_take_the_references_defaults() -> None:
    empty = {"mm_vision_tower": "x", "mm_hidden_size": 4}
    names = ("image_aspect_ratio", "mm_patch_merge_type", "mm_vision_select_feature", "mm_projector_type")
    settings = MultimodalConfig.checked(empty)
    nulls = dict.fromkeys((*names, "mm_resampler_type", "tokenizer_padding_side", "s2_scales"))
    assert MultimodalConfig.checked({**empty, **nulls}) == settings
    found = (
        settings.image_aspect_ratio,
        settings.merge_type,
        settings.select_feature,
        settings.projector_type,
    )
    assert found == ("square", "flat", "patch", "linear")


def test_every_recorded_checkpoint_passes(checkpoints: Path) -> None:
    names = [one.name for one in checkpoints.glob("llava-*") if (one / "config.json").is_file()]
    assert len(names) > 6
    for name in names:
        config = {**read_config(checkpoints / name), "mm_vision_tower": str(checkpoints / "tiny-clip")}
        check_settings(config, name)


def test_grids_that_are_not_used_are_left_alone(v16: Path) -> None:
    """Checkpoints without tiles carry whatever their training script said."""
    change(v16, image_aspect_ratio="pad", mm_patch_merge_type="flat", image_grid_pinpoints=[])
    check_settings(read_config(v16), str(v16))


def test_grids_as_text_load(v16: Path) -> None:
    change(v16, image_grid_pinpoints="[(56, 112), (112, 56)]")
    _, model, _, _ = load_pretrained_model(str(v16), None, "llava", device="cpu", dtype=torch.float32)
    assert model.config.image_grid_pinpoints == "[(56, 112), (112, 56)]"
    check_grids("[(56, 112)]", 56)


def test_a_feature_that_the_tower_does_not_have(v16: Path, tmp_path: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=56, patch_size=14
    )
    config.save_pretrained(tmp_path / "siglip")
    change(v16, mm_vision_tower=str(tmp_path / "siglip"), mm_vision_select_feature="cls_patch")
    refuse(v16, "mm_vision_select_feature is 'cls_patch'", "no CLS token", "expected 'patch'")


# ---------------------------------------------------------------------------------------------- the tower


def test_a_missing_tower_is_called_so(v16: Path) -> None:
    change(v16, mm_vision_tower="/nowhere/clip")
    refuse(v16, f"{v16}/config.json", "vision tower '/nowhere/clip'", "mm_vision_tower", "There is no folder")
    problems = " ".join(inspect_checkpoint(str(v16)).problems)
    assert "vision tower '/nowhere/clip'" in problems


def test_a_relative_tower_says_where_it_was_looked_for(
    v16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change(v16, mm_vision_tower="./towers/clip")
    refuse(v16, "./towers/clip", str(tmp_path / "towers" / "clip"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_size": 0}, "image_size 0; expected a whole number from 1"),
        ({"patch_size": 100}, "patch_size is 100, more than image_size 56"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_a_tower_with_a_bad_config(
    changes: dict[str, Any], expected: str, v16: Path, checkpoints: Path, tmp_path: Path
) -> None:
    tower = Path(shutil.copytree(checkpoints / "tiny-clip", tmp_path / "clip"))
    vision = {**json.loads((tower / "config.json").read_text())["vision_config"], **changes}
    change(tower, vision_config=vision)
    change(v16, mm_vision_tower=str(tower))
    refuse(v16, str(tower), "config.json", expected)


@pytest.mark.parametrize("own", [False, True])
def test_a_moved_folder_with_its_tower_in_it_names_it(own: bool, checkpoints: Path, tmp_path: Path) -> None:
    """convert_hf from-hf writes the tower into the new folder, and names it by its whole path."""
    folder = Path(shutil.copytree(checkpoints / "llava-tiny-v1.5-st", tmp_path / "moved"))
    config = json.loads((folder / "config.json").read_text()) | {"mm_vision_tower": "/before/vision_tower"}
    (folder / "config.json").write_text(json.dumps(config))
    if own:
        shutil.copytree(checkpoints / "tiny-clip", folder / "vision_tower")
    with pytest.raises(CheckpointError, match="/before/vision_tower") as caught:
        load_pretrained_model(str(folder), None, "x", device="cpu")
    told = f"This folder has one of that name: {folder}/vision_tower."
    assert (told in str(caught.value)) == own and "\n" not in str(caught.value)
