"""Checkpoints of other projects, and what is given in a model's place: one clear sentence each."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import folders
import pytest
import torch
from folders import refuse
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, save_tensors
from llava.model.checkpoints.foreign import foreign_config


def folder_with(path: Path, config: dict | None = None, *names: str) -> Path:
    """A folder with a config, small weights, and empty files of other names."""
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
        save_tensors({"w": torch.zeros(2)}, path / "model.safetensors")
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    return path


CONFIGS = {
    "llava-hf 1.5": (
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": {}},
        ["llava-hf", "LlavaForConditionalGeneration", "python -m llava.model.convert_hf from-hf"],
    ),
    "llava-hf 1.6": (
        {"model_type": "llava_next", "text_config": {}, "vision_config": {}},
        ["llava-hf", "llava_next", "python -m llava.model.convert_hf from-hf"],
    ),
    "onevision of transformers": (
        {"model_type": "llava_onevision", "architectures": ["LlavaOnevisionForConditionalGeneration"]},
        ["LlavaOnevisionForConditionalGeneration", "not in LLaVA's format"],
    ),
    "LLaVA on an unknown LLM": (
        {"model_type": "llava_galactic", "architectures": ["LlavaGalactic"], "mm_vision_tower": "x/y"},
        ["'llava_galactic'", "['LlavaGalactic']", "name no language model that transformers"],
    ),
    "Qwen2-VL": (
        {
            "model_type": "qwen2_vl",
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "vision_config": {"depth": 2},
        },
        ["vision-language model of another project", "Qwen2VLForConditionalGeneration"],
    ),
    "Qwen-VL": (
        {
            "model_type": "qwen",
            "architectures": ["QWenLMHeadModel"],
            "visual": {"width": 8},
            "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
        },
        ["vision-language model of another project", "QWenLMHeadModel", "that project's code"],
    ),
    "T5": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        ["T5ForConditionalGeneration", "not LLaVA"],
    ),
    "CLIP": ({"model_type": "clip", "architectures": ["CLIPModel"]}, ["image encoder", "mm_vision_tower"]),
    "CLIP tower": ({"model_type": "clip_vision_model"}, ["image encoder", "--vision_tower"]),
    "SigLIP": ({"model_type": "siglip", "architectures": ["SiglipModel"]}, ["image encoder"]),
    "part of diffusers": (
        {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30.0"},
        ["diffusers", "UNet2DConditionModel"],
    ),
    "unknown": ({"model_type": "galactic"}, ["'galactic'", "no language model that transformers"]),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_models_of_others(tmp_path, kind):
    config, parts = CONFIGS[kind]
    folder = folder_with(tmp_path / "model", config)
    refuse(folder, folder, *parts)


FILES = {
    "diffusers pipeline": (["model_index.json", "unet/config.json"], ["diffusers pipeline"]),
    "gguf": (["model-Q4_K_M.gguf", "tokenizer.json"], ["GGUF", "llama.cpp"]),
    "Meta's": (["params.json", "consolidated.00.pth", "tokenizer.model"], ["Meta's own format", "convert"]),
    "tokenizer": (["tokenizer.model", "tokenizer_config.json"], ["holds only a tokenizer"]),
    "TensorFlow": (["tf_model.h5"], ["TensorFlow"]),
    "onnx": (["model.onnx"], ["ONNX"]),
    "DeepSpeed": (["zero_to_fp32.py", "global_step9/x.pt"], ["zero_to_fp32.py", "DeepSpeed"]),
    "parent": (
        ["checkpoint-1000/config.json", "checkpoint-500/config.json", "trainer_state.json"],
        ["give one of the folders in it: checkpoint-500, checkpoint-1000"],
    ),
    "nothing": ([], ["is empty"]),
    "other": (["notes.txt"], ["holds no model"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_folders_without_a_model(tmp_path, kind):
    names, parts = FILES[kind]
    folder = folder_with(tmp_path / "model", None, *names)
    refuse(folder, folder, *parts, "expected config.json", "mm_projector.bin")


def test_a_config_beside_weights_of_another_kind(copy):
    folder = copy("llava-tiny-v1.5")
    folders.drop_weights(folder)
    (folder / "ggml-model-f16.gguf").write_text("GGUF")
    refuse(folder, folder, "GGUF")


def test_files_in_place_of_folders(tmp_path, checkpoints):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    refuse(tmp_path / "model.gguf", "GGUF file of llama.cpp")
    file = checkpoints / "llava-tiny-v1.5-st" / "model.safetensors"
    refuse(file, "is a file", f"lies in {file.parent}")
    refuse(checkpoints / "llava-tiny-pretrain" / "mm_projector.bin", "is a file")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llava-tiny-v1.5-st", "model.safetensors"),
        ("llava-tiny-v1.5", "pytorch_model-00002-of-00003.bin"),
        ("llava-tiny-v1.6", "model-00003-of-00003.safetensors"),
        ("llava-tiny-pretrain", "mm_projector.bin"),
        ("llava-tiny-v1.5-lora", "adapter_model.safetensors"),
        ("vicuna-tiny", "tokenizer.model"),
    ],
)
def test_git_lfs_pointers(copy, vicuna, name, file):
    folder = copy(name)
    (folder / file).write_text(POINTER)
    needs_base = name.endswith(("pretrain", "lora"))
    refuse(folder, folder / file, "git-lfs pointer", "git lfs pull", base=vicuna if needs_base else None)


@pytest.mark.parametrize("name", ["vicuna-tiny", "llava-tiny-v1.5", "llava-tiny-v0", "llava-tiny-mpt"])
def test_our_own_are_not_taken_for_others(checkpoints, name):
    assert foreign_config(folders.read_config(checkpoints / name), name) is None


@pytest.mark.parametrize("model_type", ["qwen2", "gemma", "gpt_neox", "opt", "phi3"])
def test_other_text_models_still_load(tmp_path, model_type, vicuna):
    """They are loaded as text models by transformers' own classes."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(model_type, vocab_size=1000, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    folders.add_tokenizer(tmp_path, "llama", vicuna.parent)
    model = load_pretrained_model(str(tmp_path), None, "x", device="cpu")[1]
    assert model.config.model_type == model_type


def test_other_ways_in_say_the_same(checkpoints, tmp_path):
    """The front door and one question refuse another project's folder with the loader's sentence."""
    import llava
    from llava.eval.run_llava import eval_model

    clip = checkpoints / "tiny-clip"
    image = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(image)
    args = SimpleNamespace(model_path=str(clip), query="What?", image_file=str(image))
    for call in (lambda: llava.load(clip), lambda: eval_model(args)):
        with pytest.raises(CheckpointError, match="is an image encoder"):
            call()
