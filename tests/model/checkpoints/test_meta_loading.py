"""Loading on the device "meta": the loader's own way and its own judgement, without reading weights."""

from __future__ import annotations

import json

import folders
import pytest
import torch
from recorded import MODELS

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, load_weights, read_tensors, save_tensors


def load(path, base=None, device="meta"):
    return load_pretrained_model(str(path), base and str(base), path.name, device=device)


def shapes(model):
    """Names and shapes of all parameters."""
    model.state_dict()  # reads what is read when it is asked for
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


@pytest.mark.parametrize("key", MODELS)
def test_recorded_checkpoints_have_the_same_names_and_shapes(key, checkpoints):
    name, base = MODELS[key]
    base = base and checkpoints / base
    tokenizer, model, processor, context = load(checkpoints / name, base)
    assert {value.device.type for value in model.parameters()} == {"meta"}
    real = load(checkpoints / name, base, "cpu")
    assert shapes(model) == shapes(real[1])
    assert (len(tokenizer), type(processor), context) == (len(real[0]), type(real[2]), real[3])


def test_every_kind_of_every_family(family, checkpoints, tmp_path):
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    folders.whole(family, tmp_path / "whole", checkpoints, unfreeze_mm_vision_tower=True)
    folders.projector(family, tmp_path / "projector", checkpoints, mm_patch_merge_type="spatial_unpad")
    folders.lora(family, tmp_path / "lora", base, checkpoints)
    for name in ("base", "whole", "projector", "lora"):
        given = base if name in ("projector", "lora") else None
        assert shapes(load(tmp_path / name, given)[1]) == shapes(load(tmp_path / name, given, "cpu")[1]), name


@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8])
def test_shapes_of_a_file(tmp_path, name, dtype):
    save_tensors({"a": torch.zeros(2, 3, dtype=dtype), "b": torch.zeros(4)}, tmp_path / name)
    got = read_tensors(tmp_path / name, shapes_only=True)
    assert set(got) == {"a", "b"}
    assert (got["a"].device.type, got["a"].dtype, tuple(got["a"].shape)) == ("meta", dtype, (2, 3))
    assert set(read_tensors(tmp_path / name, shapes_only=True, only=["b"])) == {"b"}


def test_files_of_the_format_before_torch_1_6_give_shapes_too(tmp_path):
    torch.save({"a": torch.zeros(2, 3)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "x.bin", shapes_only=True)["a"].device.type == "meta"


def drop(name):
    return lambda weights: weights.pop(name)


def reshape(weights):
    weights["model.mm_projector.0.weight"] = torch.zeros(64, 48)


FAULTS = {
    "missing": drop("model.layers.1.mlp.up_proj.weight"),
    "missing projector": drop("model.mm_projector.2.bias"),
    "unexpected": lambda weights: weights.update({"model.unknown.weight": torch.zeros(2)}),
    "shape": reshape,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_sentence_is_that_of_real_loading(copy, fault, file):
    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), FAULTS[fault], file)
    sentences = []
    for device in ("meta", "cpu"):
        with pytest.raises(CheckpointError) as caught:
            load(folder, device=device)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_an_adapter_of_another_rank(copy, vicuna, device):
    folder = copy("llava-tiny-v1.5-lora")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "r": 4}))
    with pytest.raises(CheckpointError, match="does not fit its base"):
        load(folder, vicuna, device)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_an_adapter_that_lacks_a_weight(copy, vicuna, device):
    folder = copy("llava-tiny-v1.5-lora")
    weights = load_weights(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "layers.1.self_attn.q_proj.lora_B" in name)
    del weights[name]
    save_tensors(weights, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="lacks 1 weight: .*q_proj.lora_B"):
        load(folder, vicuna, device)
