"""Incomplete and foreign model folders, and parts that do not belong together: one clear sentence each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import folders
import pytest
import torch
from folders import refuse

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights, save_tensors
from llava.utils import UserError

# ----------------------------------------------------------------------------------------- missing, left over

PROJECTOR_KEY = "model.mm_projector.0.weight"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_dropped_projector_key(copy, file):
    folder = folders.rewrite(copy("llava-tiny-v1.5-st"), lambda weights: weights.pop(PROJECTOR_KEY), file)
    refuse(folder, folder, "lacks 1 weight", PROJECTOR_KEY)


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
    folders.edit_config(folder, model_type="llava_galactic", architectures=["LlavaGalacticForCausalLM"])
    refuse(folder, "'llava_galactic'", "LlavaGalacticForCausalLM", "expected its model_type")


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
