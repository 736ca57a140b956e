"""What convert_hf refuses, what it finds out, and that a failure leaves nothing behind."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_folders import changed_copy, edit, weights
from safetensors.torch import save_file

from llava.model import convert_hf
from llava.model.checkpoints.files import CheckpointError
from llava.model.conversion import template as template_module
from llava.model.conversion import weights as weights_module
from llava.model.conversion.parity import ParityError
from llava.model.convert_hf import from_hf, to_hf
from llava.utils import UserError, run_program


@pytest.fixture(scope="module")
def export(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported v1.5; tests copy it before they change it."""
    target = tmp_path_factory.mktemp("export") / "hf"
    to_hf(str(checkpoints / "llava-tiny-v1.5"), target, parity=None)
    return target


@pytest.fixture
def v15(checkpoints: Path) -> str:
    return str(checkpoints / "llava-tiny-v1.5")


def assert_empty(folder: Path) -> None:
    assert sorted(folder.iterdir()) == []


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the program as from the command line; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["convert_hf", *map(str, arguments)])
    try:
        run_program(convert_hf.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# ------------------------------------------------------------------------------------- the models differ


def wrong_pixels(processor: Any, hf: dict[str, Any]) -> dict[str, Any]:
    return {**RIGHT_FIELDS(processor, hf), "do_pad": False}


RIGHT_FIELDS = template_module.image_processor_fields


def test_other_pixels_are_found(v15: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "image_processor_fields", wrong_pixels)
    with pytest.raises(ParityError) as caught:
        to_hf(v15, tmp_path / "hf")
    assert caught.value.report.logit_difference > 1e-3
    assert caught.value.report.ids_equal
    assert_empty(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.1.mlp.up_proj.weight",
        pytest.param("vision_tower", marks=pytest.mark.slow),
    ],
)
def test_another_weight_is_found(
    name: str, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that changes on the way back gives exit code 1 and no folder."""
    right = weights_module.stored

    def wrong(path: str, *wanted: Any) -> Any:
        for key, value in right(path, *wanted):
            yield key, value * 1.01 if key.startswith(name) and value.ndim > 1 else value

    monkeypatch.setattr(weights_module, "stored", wrong)
    assert run(monkeypatch, "from-hf", export, tmp_path / "llava") == 1
    assert_empty(tmp_path)


def test_another_template_is_found(
    v15: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    right = template_module.chat_template
    monkeypatch.setattr(
        template_module,
        "chat_template",
        lambda *given, **named: right(*given, **named).replace("USER", "User"),
    )
    assert run(monkeypatch, "to-hf", v15, tmp_path / "hf") == 1
    printed = capsys.readouterr().out
    assert "parity in float32: FAILED" in printed
    assert "DIFFERENT (chat template" in printed
    assert "was not written" in printed
    assert_empty(tmp_path)


# ------------------------------------------------------------------------------------------- the program


def test_the_program_says_what_it_found(
    v15: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(monkeypatch, "to-hf", v15, tmp_path / "hf") == 0
    printed = capsys.readouterr().out
    assert "parity in float32: passed" in printed
    assert "allowed 1e-04" in printed
    assert printed.endswith(f"wrote {tmp_path / 'hf'}\n")


def test_without_parity_it_says_so(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(monkeypatch, "from-hf", export, tmp_path / "llava", "--no-parity") == 0
    assert "nothing is proven" in capsys.readouterr().out
    assert not (tmp_path / "llava" / "parity.json").exists()


def test_bad_arguments_give_one_line(
    v15: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for option in (("--conv-mode", "vicuna"), ("--dtype", "int8"), ("--max-shard-gb", "0")):
        assert run(monkeypatch, "to-hf", v15, tmp_path / "hf", *option) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert_empty(tmp_path)


# --------------------------------------------------------------------------------------- existing folders


def test_an_existing_folder_is_replaced_only_on_demand(v15: str, tmp_path: Path) -> None:
    target = tmp_path / "hf"
    target.mkdir()
    (target / "note.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="--overwrite"):
        to_hf(v15, target, parity=None)
    assert [file.name for file in target.iterdir()] == ["note.txt"]
    to_hf(v15, target, parity=None, overwrite=True)
    assert not (target / "note.txt").exists()
    assert (target / "config.json").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]


def test_an_existing_folder_outlives_a_failure(
    v15: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "hf"
    target.mkdir()
    (target / "note.txt").write_text("mine")
    monkeypatch.setattr(template_module, "image_processor_fields", wrong_pixels)
    with pytest.raises(ParityError):
        to_hf(v15, target, overwrite=True)
    assert (target / "note.txt").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]


def test_a_source_is_not_overwritten(v15: str, export: Path) -> None:
    for convert, source in ((to_hf, v15), (from_hf, str(export))):
        with pytest.raises(CheckpointError, match="the source itself"):
            convert(source, Path(source) / ".." / Path(source).name, overwrite=True)


def test_a_full_disk_leaves_nothing(v15: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights_module, "save_file", full)
    with pytest.raises(CheckpointError, match="DST .* could not be written: the disk is full"):
        to_hf(v15, tmp_path / "hf")
    assert_empty(tmp_path)


def test_a_disk_without_room_is_refused_at_once(
    v15: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="make room"):
        to_hf(v15, tmp_path / "hf")
    assert_empty(tmp_path)


# -------------------------------------------------------------------------------------- what has no place


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mm_projector_type": "linear"}, "projector is 'linear'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mlp3x_gelu"),
        ({"mm_projector_type": "identity"}, "identity"),
        ({"s2": True}, "several scales"),
        ({"image_aspect_ratio": "anyres"}, "merges them flat"),
        ({"mm_patch_merge_type": "spatial"}, "'spatial'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "goes with anyres"),
        (
            {
                "mm_patch_merge_type": "spatial_unpad",
                "image_aspect_ratio": "anyres",
                "mm_vision_select_feature": "cls_patch",
            },
            "CLS",
        ),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
    ],
)
def test_what_transformers_cannot_hold(
    changes: dict[str, Any], reason: str, v15: str, tmp_path: Path
) -> None:
    source = changed_copy(v15, tmp_path / "llava", **changes)
    with pytest.raises(CheckpointError, match=reason):
        to_hf(str(source), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("folder", "reason"), [("llava-tiny-mpt", "MPT"), ("vicuna-tiny", "text model"), ("nowhere", "no folder")]
)
def test_other_checkpoints_are_refused(folder: str, reason: str, checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        to_hf(str(checkpoints / folder), tmp_path / "hf")
    assert_empty(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "vipllava"}, "vipllava"),
        ({"model_type": "llava_onevision"}, "clip_vision_model"),
        ({"text_config": {"model_type": "bert"}}, "bert"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip"),
        ({"vision_feature_layer": [-2, -1]}, "several layers"),
        ({"projector_hidden_act": "relu"}, "relu"),
        ({"multimodal_projector_bias": False}, "no bias"),
    ],
)
def test_what_llava_cannot_hold(changes: dict[str, Any], reason: str, export: Path, tmp_path: Path) -> None:
    source = changed_copy(export, tmp_path / "hf", **changes)
    with pytest.raises(CheckpointError, match=reason):
        from_hf(str(source), tmp_path / "llava")
    assert not (tmp_path / "llava").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("language_model.model.norm.weight"), "lacks model.norm.weight"),
        (lambda state: state.update({"qformer.query": torch.ones(2)}), "qformer.query"),
        (lambda state: state.update({"multi_modal_projector.linear_2.bias": torch.ones(7)}), "another shape"),
        (lambda state: state.update({"image_newline": torch.ones(64)}), "no place"),
    ],
)
def test_damaged_weights_are_named(change: Any, reason: str, export: Path, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(export, source)
    state = weights(source)
    change(state)
    save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=reason):
        from_hf(str(source), tmp_path / "llava")
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]


def test_missing_files_are_named(export: Path, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(export, source)
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        from_hf(str(source), tmp_path / "llava")


def test_the_way_back_needs_the_named_tower_to_compare(export: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        from_hf(str(export), tmp_path / "llava", vision_tower=str(tmp_path / "nowhere"))
    assert_empty(tmp_path)
    from_hf(str(export), tmp_path / "llava", vision_tower="openai/clip-vit-large-patch14-336", parity=None)
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["mm_vision_tower"] == "openai/clip-vit-large-patch14-336"
    assert config["unfreeze_mm_vision_tower"] is True  # the weights are in the checkpoint


def test_a_processor_that_pads_is_recognised(export: Path, tmp_path: Path) -> None:
    fields = json.loads((export / "preprocessor_config.json").read_text())
    assert template_module.image_aspect_ratio(fields) == "pad"
    assert template_module.image_aspect_ratio({**fields, "do_pad": False}) == "square"
    edit_target = tmp_path / "hf"
    shutil.copytree(export, edit_target)
    edit(edit_target / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    assert template_module.image_aspect_ratio(
        json.loads((edit_target / "preprocessor_config.json").read_text())
    ) == ("square")


# ---------------------------------------------------------------------------------------------- llama.cpp


class Writer:
    """Stands in for gguf.GGUFWriter: the package is not needed to see what is written."""

    last: Writer

    def __init__(self, path: Path, arch: str) -> None:
        self.path, self.arch = path, arch
        self.fields: dict[str, Any] = {}
        self.tensors: dict[str, Any] = {}
        Writer.last = self

    def __getattr__(self, name: str) -> Any:
        if name == "add_tensor":
            return self.tensors.__setitem__
        if name.startswith("add_"):
            return lambda *given: self.fields.__setitem__(given[0] if len(given) > 1 else name, given[-1])
        return lambda: self.path.write_text("gguf")


def test_mmproj_has_the_tower_up_to_the_selected_layer(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", type(sys)("gguf"))
    monkeypatch.setattr(sys.modules["gguf"], "GGUFWriter", Writer, raising=False)
    assert run(monkeypatch, "mmproj", export, tmp_path / "mmproj.gguf") == 0
    assert "wrote 57 tensors" in capsys.readouterr().out
    written = Writer.last
    assert written.arch == "clip"
    assert [file.name for file in tmp_path.iterdir()] == ["mmproj.gguf"]
    fields = written.fields
    # 4 layers, select_layer -2: three are run, and llama.cpp takes what the third gives
    assert (fields["clip.vision.block_count"], fields["clip.vision.feature_layer"]) == (3, [3])
    assert fields["clip.use_gelu"] is False
    assert "clip.vision.image_grid_pinpoints" not in fields
    names = set(written.tensors)
    assert {name.split(".")[2] for name in names if name.startswith("v.blk.")} == {"0", "1", "2"}
    assert {
        "v.class_embd",
        "v.patch_embd.weight",
        "v.position_embd.weight",
        "v.pre_ln.weight",
        "v.blk.0.attn_q.weight",
        "v.blk.0.attn_out.bias",
        "v.blk.2.ln1.weight",
        "v.blk.2.ffn_up.weight",
        "v.blk.2.ffn_down.bias",
        "mm.0.weight",
        "mm.2.bias",
    } <= names
    assert written.tensors["v.blk.0.ffn_up.weight"].shape == (64, 32)
    assert str(written.tensors["mm.0.weight"].dtype) == "float16"
    assert str(written.tensors["mm.0.bias"].dtype) == "float32"


def test_mmproj_of_tiles_names_the_grids(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_hf(str(checkpoints / "llava-tiny-v1.6-mistral"), tmp_path / "hf", parity=None)
    monkeypatch.setitem(sys.modules, "gguf", type(sys)("gguf"))
    monkeypatch.setattr(sys.modules["gguf"], "GGUFWriter", Writer, raising=False)
    convert_hf.write_mmproj(str(tmp_path / "hf"), tmp_path / "mmproj.gguf")
    fields = Writer.last.fields
    assert fields["clip.vision.image_grid_pinpoints"] == [56, 112, 112, 56, 112, 112, 168, 56, 56, 168]
    assert fields["clip.vision.mm_patch_merge_type"] == "spatial_unpad"
    assert "v.image_newline" in Writer.last.tensors


def test_mmproj_without_gguf_says_how_to_get_it(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert run(monkeypatch, "mmproj", export, tmp_path / "mmproj.gguf") == 2
    assert "pip install 'gguf'" in capsys.readouterr().err
    assert_empty(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"vision_feature_select_strategy": "full"}),
        ("config.json", {"image_token_index": None, "image_token_id": None}),
        ("tokenizer.json", '{"version": '),
    ],
)
def test_what_transformers_cannot_run_is_one_sentence(
    file: str, changes: Any, export: Path, tmp_path: Path
) -> None:
    """Files of a folder that do not fit each other, as after an edit or half a copy."""
    folder = Path(shutil.copytree(export, tmp_path / "hf"))
    if isinstance(changes, str):
        (folder / file).write_text(changes)
    else:
        edit(folder / file, **changes)
    with pytest.raises(CheckpointError) as caught:
        from_hf(str(folder), tmp_path / "back")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()
