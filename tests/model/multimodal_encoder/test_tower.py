"""The CLIP tower: CLIPVisionModel's hidden states without the layers behind, loading, dtypes, bad folders."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import CLIPVisionModel

from llava.model.checkpoints.files import CheckpointError
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.utils import UserError

LAYERS = 4


def make(folder, layer=-2, feature="patch", **kwargs):
    args = SimpleNamespace(mm_vision_tower=str(folder), mm_vision_select_layer=layer)
    args.mm_vision_select_feature = feature
    return build_vision_tower(args, **kwargs)


@pytest.mark.parametrize("layer", [-1, -2, -5, 0, 1, 4])
def test_features_are_the_hidden_states_of_clip(tower, layer):
    images = tiny.pixels(2, 3, 28, 28)
    clip = CLIPVisionModel.from_pretrained(tower, dtype=torch.float32).eval()
    with torch.no_grad():
        states = clip(images, output_hidden_states=True).hidden_states
        assert torch.equal(make(tower, layer)(images), states[layer][:, 1:])
        assert torch.equal(make(tower, layer, "cls_patch")(images), states[layer])
    assert not torch.equal(states[layer], states[(layer + 1) % 5])


@pytest.mark.parametrize(("layer", "run"), [(-1, 4), (-2, 3), (-5, 0), (0, 0), (1, 1)])
def test_layers_behind_the_selected_one_do_not_run(tower, layer, run):
    plain = make(tower, layer)
    calls = []
    for index, one in enumerate(plain.vision_tower.vision_model.encoder.layers):
        one.register_forward_hook(lambda *_, index=index: calls.append(index))
    plain(tiny.pixels())
    assert calls == list(range(run))


def test_feature_select_takes_clip_outputs(tower):
    """Other projects call it with the outputs of the whole CLIP."""
    plain, images = make(tower), tiny.pixels()
    outputs = plain.vision_tower(images, output_hidden_states=True)
    assert torch.equal(plain.feature_select(outputs), plain(images))


@pytest.mark.parametrize("layer", [5, -6])
def test_a_layer_that_does_not_exist(tower, layer):
    with pytest.raises(UserError, match=f"mm_vision_select_layer is {layer}.*-5 to 4"):
        make(tower, layer)(tiny.pixels())


def test_unknown_feature(tower):
    with pytest.raises(UserError, match="'middle'; expected 'patch' or 'cls_patch'"):
        make(tower, feature="middle")(tiny.pixels())


def test_a_list_gives_a_list(tower):
    plain, images = make(tower), tiny.pixels(3, 3, 28, 28)
    rows = plain(list(images))
    assert [tuple(row.shape) for row in rows] == [(1, 16, 16)] * 3
    torch.testing.assert_close(torch.cat(rows), plain(images))


@pytest.mark.parametrize("weights", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("images", [torch.float32, torch.float16, torch.bfloat16])
def test_any_float_dtype_goes_in_and_comes_out(tower, weights, images):
    plain = make(tower).to(weights)
    assert plain.dtype == weights
    got = plain(tiny.pixels().to(images))
    assert got.dtype == images
    exact = make(tower)(tiny.pixels())
    assert (got.float() - exact).abs().max() < 0.15 * exact.abs().max()


def test_properties_before_and_after_loading(tower):
    plain = make(tower, delay_load=True)
    known = (plain.hidden_size, plain.num_patches, plain.num_patches_per_side, plain.config.image_size)
    assert known == (16, 16, 4, 28)
    assert not plain.is_loaded
    assert list(plain.parameters()) == []
    with pytest.raises(UserError, match=r"not loaded; call load_model\(\)"):
        plain(tiny.pixels())
    plain.load_model()
    weights = plain.vision_tower
    plain.load_model()
    assert plain.vision_tower is weights  # a second call does nothing
    assert (
        plain.hidden_size,
        plain.num_patches,
        plain.num_patches_per_side,
        plain.config.image_size,
    ) == known
    assert plain.dummy_feature.shape == (1, 16)
    assert (plain.dtype, plain.device) == (torch.float32, torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert plain.image_processor.crop_size["height"] == 28


def test_frozen_tower_keeps_no_graph_and_a_trainable_one_gets_gradients(tower):
    plain = make(tower)
    assert not plain(tiny.pixels().requires_grad_()).requires_grad
    plain.requires_grad_(True)
    with torch.no_grad():
        assert not plain(tiny.pixels()).requires_grad
    plain(tiny.pixels()).sum().backward()
    layers = plain.vision_tower.vision_model.encoder.layers
    assert layers[2].mlp.fc1.weight.grad.abs().max() > 0
    assert layers[3].mlp.fc1.weight.grad is None  # behind select_layer


def test_tower_in_the_checkpoint_is_built_from_config(tower):
    args = SimpleNamespace(
        mm_vision_tower=str(tower), mm_vision_select_layer=-2, unfreeze_mm_vision_tower=True
    )
    built = build_vision_tower(args, delay_load=True)
    assert built.is_loaded
    stored = make(tower).state_dict()
    assert {n: v.shape for n, v in built.state_dict().items()} == {n: v.shape for n, v in stored.items()}
    assert all(name.startswith("vision_tower.vision_model.") for name in stored)


def test_a_tower_without_processor_file_gets_clips_processor(tower, tmp_path, caplog):
    folder = shutil.copytree(tower, tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    processor = make(folder).image_processor
    reference = make(tower).image_processor
    assert "no preprocessor_config.json" in caplog.text
    fields = ("image_mean", "image_std", "resample", "do_resize", "do_center_crop", "rescale_factor")
    for name in fields:
        assert getattr(processor, name) == getattr(reference, name), name
    for name in ("size", "crop_size"):
        assert dict(getattr(processor, name)) == dict(getattr(reference, name)), name


def test_a_whole_clip_folder_serves_as_tower(checkpoints):
    """OpenAI's folders hold text and vision together; the vision half is picked out."""
    plain = make(checkpoints / "tiny-clip")
    assert (plain.hidden_size, plain.num_patches) == (32, 16)


# --------------------------------------------------------------------------------------------- bad folders


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no-such-tower"):
        make(tmp_path / "no-such-tower")


def test_no_tower_named():
    with pytest.raises(UserError, match="mm_vision_tower or vision_tower"):
        build_vision_tower(SimpleNamespace(mm_vision_tower=None))


def test_a_folder_of_another_kind(tmp_path):
    folder = tmp_path / "openai-resnet-in-a-folder-named-like-clip"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(
        UserError, match=r"'resnet'; known types: aimv2_vision_model, .*clip, clip_vision_model, .*siglip"
    ):
        make(folder)


def test_kind_comes_from_the_config_not_the_name(tower, tmp_path):
    folder = shutil.copytree(tower, tmp_path / "x1")
    assert isinstance(make(folder), CLIPVisionTower)


def copy_without_weights(tower, tmp_path):
    folder = shutil.copytree(tower, tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    return folder


def test_folder_without_weights(tower, tmp_path):
    folder = copy_without_weights(tower, tmp_path)
    with pytest.raises(CheckpointError, match=str(folder)):
        make(folder)


@pytest.mark.parametrize("keep", [0, 20, 3000])
def test_truncated_weights(tower, tmp_path, keep):
    folder = shutil.copytree(tower, tmp_path / "clip")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=str(folder)):
        make(folder)


def test_a_missing_weight_is_named(tower, tmp_path):
    """transformers would fill it with random numbers and go on."""
    from llava.model.checkpoints.files import load_weights, save_tensors

    weights = load_weights(tower)
    name = next(name for name in weights if "layers.1.self_attn.q_proj.weight" in name)
    del weights[name]
    folder = copy_without_weights(tower, tmp_path)
    save_tensors(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        make(folder)


def test_a_weight_of_another_shape_is_named(tower, tmp_path):
    from llava.model.checkpoints.files import load_weights, save_tensors

    weights = load_weights(tower)
    name = next(name for name in weights if "patch_embedding" in name)
    weights[name] = torch.zeros(16, 3, 5, 5)
    folder = copy_without_weights(tower, tmp_path)
    save_tensors(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="patch_embedding"):
        make(folder)
