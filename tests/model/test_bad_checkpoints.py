"""Damaged, incomplete, foreign and malicious model folders: one clear sentence each, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import folders
import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, load_weights, read_tensors, save_tensors
from llava.utils import UserError


def refuse(path, *parts, base=None, error=CheckpointError, **kwargs):
    """Loading `path` must fail with one sentence that holds every one of `parts`."""
    with pytest.raises(error) as caught:
        load_pretrained_model(str(path), base and str(base), path.name, device="cpu", **kwargs)
    message = str(caught.value)
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.fixture
def copy(checkpoints, tmp_path):
    """Copy a recorded checkpoint: `copy("llava-tiny-v1.5")`."""
    return lambda name: Path(shutil.copytree(checkpoints / name, tmp_path / name))


@pytest.fixture
def vicuna(checkpoints):
    """The text model that the recorded projector and adapter were trained on."""
    return checkpoints / "vicuna-tiny"


# ------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("llava-tiny-v1.5", "pytorch_model-00002-of-00003.bin"),
        ("llava-tiny-v1.6", "model-00002-of-00003.safetensors"),
    ],
)
def test_missing_shard(copy, name, shard):
    folder = copy(name)
    (folder / shard).unlink()
    refuse(folder, folder, shard, "lacks 1 of the 3 weight files")


@pytest.mark.parametrize("keep", [0, 5, 100, 200_000])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llava-tiny-v1.5-st", "model.safetensors"),
        ("llava-tiny-v1.6", "model-00001-of-00003.safetensors"),
        ("llava-tiny-mpt", "pytorch_model.bin"),
        ("vicuna-tiny", "pytorch_model.bin"),
    ],
)
def test_truncated_weights(copy, name, file, keep):
    folder = copy(name)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[:keep])
    refuse(folder, folder, *([file, "empty"] if keep == 0 else []))


def test_garbage_in_place_of_weights(copy):
    for name, file in (("llava-tiny-v1.5-st", "model.safetensors"), ("llava-tiny-mpt", "pytorch_model.bin")):
        folder = copy(name)
        (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 540848\n")
        refuse(folder, folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "not json", '"text"'])
def test_broken_config(copy, content):
    folder = copy("llava-tiny-v1.5")
    (folder / "config.json").write_text(content)
    refuse(folder, folder / "config.json", "JSON")


@pytest.mark.parametrize("content", ["{}", "{", '{"weight_map": []}'])
def test_broken_index(copy, content):
    folder = copy("llava-tiny-v1.5")
    (folder / "pytorch_model.bin.index.json").write_text(content)
    refuse(folder, "pytorch_model.bin.index.json")


def test_no_folder_no_model(tmp_path):
    refuse(tmp_path / "nowhere", "There is no folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path / "empty", "holds no model", "mm_projector.bin")
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "is a file")


def test_a_config_alone(copy):
    folder = copy("llava-tiny-v1.5")
    folders.drop_weights(folder)
    refuse(folder, folder, "holds no model", "model.safetensors")


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_truncated_projector_file(copy, vicuna, keep):
    folder = copy("llava-tiny-pretrain")
    file = folder / "mm_projector.bin"
    file.write_bytes(file.read_bytes()[:keep])
    refuse(folder, file, base=vicuna)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "non_lora_trainables.bin"])
def test_truncated_lora_files(copy, vicuna, file):
    folder = copy("llava-tiny-v1.5-lora")
    (folder / file).write_bytes((folder / file).read_bytes()[:500])
    refuse(folder, folder / file, base=vicuna)


# --------------------------------------------------------------------------------------------- code in files


class TouchesFile:
    """Unpickling this creates a file, as a malicious checkpoint would."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def write_malicious(file: Path, mark: Path, kind: str) -> None:
    if kind == "zip":  # today's torch format
        torch.save({"model.mm_projector.0.weight": TouchesFile(mark)}, file)
    elif kind == "legacy":
        torch.save({"weight": TouchesFile(mark)}, file, _use_new_zipfile_serialization=False)
    else:
        file.write_bytes(pickle.dumps(TouchesFile(mark)))


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_the_malicious_file_works(tmp_path, kind):
    """Without protection the mark appears: the tests below would notice."""
    write_malicious(tmp_path / "x.bin", tmp_path / "mark", kind)
    if kind == "plain":
        pickle.loads((tmp_path / "x.bin").read_bytes())
    else:
        torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llava-tiny-pretrain", "mm_projector.bin"),
        ("llava-tiny-v1.5-lora", "non_lora_trainables.bin"),
        ("llava-tiny-v1.5-lora", "adapter_model.bin"),
        ("llava-tiny-mpt", "pytorch_model.bin"),
        ("vicuna-tiny", "pytorch_model.bin"),
        ("llava-tiny-v1.5", "pytorch_model-00002-of-00003.bin"),
    ],
)
def test_pickled_code_does_not_run(copy, vicuna, tmp_path, name, file, kind):
    folder, mark = copy(name), tmp_path / "mark"
    if file == "adapter_model.bin":
        (folder / "adapter_model.safetensors").unlink()
    write_malicious(folder / file, mark, kind)
    refuse(folder, folder, base=None if name == "vicuna-tiny" else vicuna)
    assert not mark.exists()


def test_pickled_code_in_a_tower_folder_does_not_run(copy, tmp_path):
    tower, folder = copy("tiny-clip"), copy("llava-tiny-v1.5")
    folders.edit_config(folder, mm_vision_tower=str(tower))
    write_malicious(tower / "pytorch_model.bin", tmp_path / "mark", "zip")
    refuse(folder, tower)
    assert not (tmp_path / "mark").exists()


def test_reading_a_file_of_objects_says_why(tmp_path):
    write_malicious(tmp_path / "x.bin", tmp_path / "mark", "zip")
    with pytest.raises(CheckpointError, match=r"x\.bin .*objects other than tensors"):
        read_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "mark").exists()


def test_a_zip_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"x\.bin"):
        read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)], ids=["list", "numbers", "tensor"])
def test_a_file_that_is_no_dict_of_tensors(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="expected a dict of tensors"):
        read_tensors(tmp_path / "x.bin")


# ----------------------------------------------------------------------------------------- missing, left over

PROJECTOR_KEY = "model.mm_projector.0.weight"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_dropped_projector_key(copy, file):
    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), lambda weights: weights.pop(PROJECTOR_KEY), file)
    refuse(folder, folder, "lacks 1 weights", PROJECTOR_KEY)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_dropped_llm_key(copy, name):
    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), lambda w: w.pop(name), "model.safetensors")
    refuse(folder, name)


def test_a_dropped_key_of_a_text_model(copy):
    folder = folders.rewrite(copy("vicuna-tiny"), lambda w: w.pop("model.norm.weight"), "model.safetensors")
    refuse(folder, "model.norm.weight")


def test_missing_image_newline(copy):
    def drop(weights):
        del weights["model.image_newline"]

    folder = folders.rewrite(copy("llava-tiny-v1.6"), drop, "model.safetensors")
    refuse(folder, folder, "model.image_newline")


def test_half_of_a_tower(copy):
    def drop(weights):
        for name in [name for name in weights if "vision_model.encoder.layers.2" in name]:
            del weights[name]

    folder = folders.rewrite(copy("llava-tiny-v1.6"), drop, "model.safetensors")
    refuse(folder, folder, "of the vision tower's weights", "encoder.layers.2")


def test_an_unexpected_key(copy):
    def add(weights):
        weights["model.mm_resampler.weight"] = torch.zeros(2)

    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), add, "model.safetensors")
    refuse(folder, folder, "model.mm_resampler.weight", "no place for")


def test_recomputed_tensors_of_old_checkpoints_are_welcome(copy):
    def add(weights):
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        weights["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[
            None
        ]

    folder = folders.rewrite(copy("llava-tiny-v1.6"), add, "model.safetensors")
    load_pretrained_model(str(folder), None, "x", device="cpu")


def test_a_weight_of_another_shape(copy):
    def change(weights):
        weights[PROJECTOR_KEY] = torch.zeros(64, 48)

    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), change, "model.safetensors")
    refuse(folder, folder, PROJECTOR_KEY, (64, 48), (64, 32))


def edit_projector(folder, change):
    file = folder / "mm_projector.bin"
    weights = load_weights(file)
    change(weights)
    save_tensors(weights, file)
    return file


def test_projector_file_of_another_shape(copy, vicuna):
    def change(weights):
        weights[PROJECTOR_KEY] = torch.zeros(64, 48)

    folder = copy("llava-tiny-pretrain")
    refuse(folder, edit_projector(folder, change), (64, 48), (64, 32), "mlp2x_gelu", base=vicuna)


def test_projector_file_of_another_type(copy, vicuna):
    folder = copy("llava-tiny-pretrain")
    folders.edit_config(folder, mm_projector_type="linear")
    refuse(folder, folder / "mm_projector.bin", "'linear'", base=vicuna)


def test_projector_file_without_a_key(copy, vicuna):
    folder = copy("llava-tiny-pretrain")
    file = edit_projector(folder, lambda weights: weights.pop("model.mm_projector.2.bias"))
    refuse(folder, file, "2.bias", base=vicuna)


def test_projector_file_with_strange_keys(copy, vicuna):
    folder = copy("llava-tiny-pretrain")
    file = edit_projector(folder, lambda weights: weights.update(other=torch.zeros(1)))
    refuse(folder, file, "other", base=vicuna)


def test_projector_folder_without_image_newline(copy, vicuna):
    folder = copy("llava-tiny-pretrain")
    folders.edit_config(folder, mm_patch_merge_type="spatial_unpad")
    refuse(folder, folder / "mm_projector.bin", "image_newline", base=vicuna)


def test_projector_without_config(copy, vicuna):
    folder = copy("llava-tiny-pretrain")
    (folder / "config.json").unlink()
    refuse(folder, "mm_projector.bin but no config.json", base=vicuna)


def test_lora_without_its_other_weights(copy, vicuna):
    folder = copy("llava-tiny-v1.5-lora")
    (folder / "non_lora_trainables.bin").unlink()
    refuse(folder, folder, "non_lora_trainables.bin", base=vicuna)


def test_lora_with_half_a_projector(copy, vicuna):
    folder = copy("llava-tiny-v1.5-lora")
    weights = load_weights(folder / "non_lora_trainables.bin")
    weights.pop("base_model.model.model.mm_projector.2.bias")
    save_tensors(weights, folder / "non_lora_trainables.bin")
    refuse(folder, "mm_projector.2.bias", base=vicuna)


def test_lora_without_adapter_weights(copy, vicuna):
    folder = copy("llava-tiny-v1.5-lora")
    (folder / "adapter_model.safetensors").unlink()
    refuse(folder, "adapter_model.bin", base=vicuna)


def test_lora_that_lacks_a_weight(copy, vicuna):
    folder = copy("llava-tiny-v1.5-lora")
    weights = load_weights(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "layers.1.self_attn.q_proj.lora_B" in name)
    del weights[name]
    save_tensors(weights, folder / "adapter_model.safetensors")
    refuse(folder, folder, "layers.1.self_attn.q_proj.lora_B", base=vicuna)


def test_lora_on_a_smaller_base(copy, vicuna, checkpoints, tmp_path):
    """The same family with fewer layers: the adapter's last layer has no place."""
    small = folders.text_base("llama", tmp_path / "small", checkpoints)
    folders.edit_config(small, num_hidden_layers=1)
    folders.rewrite(small, lambda w: [w.pop(n) for n in list(w) if "layers.1." in n], "model.safetensors")
    folder = tmp_path / "lora"
    folders.lora("llama", folder, folders.text_base("llama", tmp_path / "base", checkpoints), checkpoints)
    folders.edit_config(folder, num_hidden_layers=1)
    refuse(folder, "layers.1", base=small)


# ------------------------------------------------------------------------------------ what belongs together


def test_base_of_another_family(copy, checkpoints, tmp_path):
    mistral = folders.text_base("mistral", tmp_path / "mistral", checkpoints)
    for name in ("llava-tiny-pretrain", "llava-tiny-v1.5-lora"):
        refuse(copy(name), "llama", mistral, "mistral", base=mistral)


def test_base_of_another_size(copy, checkpoints, tmp_path):
    wide = folders.text_base("llama", tmp_path / "wide", checkpoints)  # 32 wide, the folder's config says 64
    refuse(copy("llava-tiny-pretrain"), wide, "(1000, 32)", base=wide)


@pytest.mark.parametrize("name", ["llava-tiny-pretrain", "llava-tiny-v1.5-lora"])
def test_no_base(copy, name, monkeypatch, tmp_path):
    """The recorded base, "vicuna-tiny", is neither a folder here nor a name of the hub."""
    monkeypatch.chdir(tmp_path)
    refuse(copy(name), "vicuna-tiny", "model_base")


@pytest.mark.parametrize("name", ["llava-tiny-pretrain", "llava-tiny-v1.5-lora"])
def test_missing_base(copy, name, tmp_path):
    refuse(copy(name), tmp_path / "nowhere", base=tmp_path / "nowhere")


def test_base_without_weights(copy, checkpoints, tmp_path):
    base = Path(shutil.copytree(checkpoints / "vicuna-tiny", tmp_path / "base"))
    folders.drop_weights(base)
    refuse(copy("llava-tiny-pretrain"), base, "no model weights", base=base)


def test_missing_tower_folder(copy, tmp_path):
    folder = copy("llava-tiny-v1.5")
    folders.edit_config(folder, mm_vision_tower=str(tmp_path / "no-clip"))
    refuse(folder, tmp_path / "no-clip")


def test_tower_that_is_not_cached(copy):
    folder = copy("llava-tiny-v1.5")
    folders.edit_config(folder, mm_vision_tower="openai/no-such-tower")
    refuse(folder, "openai/no-such-tower")


def test_unknown_projector(copy):
    folder = copy("llava-tiny-v1.5")
    folders.edit_config(folder, mm_projector_type="cabstract")
    refuse(folder, "'cabstract'", "linear", "mlpNx_gelu", "identity", error=UserError)


def test_unknown_model_type(copy):
    folder = copy("llava-tiny-v1.5")
    folders.edit_config(folder, model_type="llava_gemma", architectures=["LlavaGemmaForCausalLM"])
    refuse(folder, "'llava_gemma'", "llava_llama", "llava_mistral", "llava_mpt")


def test_unknown_text_model_type(copy):
    folder = copy("vicuna-tiny")
    folders.edit_config(folder, model_type="galactic", architectures=["GalacticForCausalLM"])
    refuse(folder, folder, "galactic")


def test_config_without_a_type(copy):
    folder = copy("llava-tiny-v1.5")
    folders.edit_config(folder, model_type=None, architectures=None)
    refuse(folder, "model_type None")


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("llava", "LlavaForConditionalGeneration"), ("llava_next", "LlavaNextForConditionalGeneration")],
)
def test_a_llava_hf_folder(copy, model_type, architecture):
    folder = copy("llava-tiny-v1.5")
    content = {"model_type": model_type, "architectures": [architecture], "text_config": {"vocab_size": 9}}
    (folder / "config.json").write_text(json.dumps(content))
    refuse(folder, folder, "llava-hf", architecture)


def test_llava_without_a_tower_name(copy):
    folder = copy("llava-tiny-v1.5")
    folders.edit_config(folder, mm_vision_tower=None)
    refuse(folder, "mm_vision_tower")


def test_folder_without_tokenizer(copy):
    folder = copy("llava-tiny-v1.5")
    (folder / "tokenizer.model").unlink()
    refuse(folder, folder, "tokenizer", error=UserError)
