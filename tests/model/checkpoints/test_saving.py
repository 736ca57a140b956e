"""save_pretrained: the reference's key names and config fields, whatever way the model came to be."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import folders
import pytest
import tiny
import torch
from recorded import MODELS
from transformers import AutoConfig, AutoModelForCausalLM
from warming import python

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights


def tower_names(stem):
    """Names of a CLIP tower with four layers in the reference's checkpoints."""
    names = ["embeddings.class_embedding", "embeddings.patch_embedding.weight"]
    names.append("embeddings.position_embedding.weight")
    # "pre_layrnorm" is CLIP's own spelling
    parts = ["pre_layrnorm", "post_layernorm"]
    for layer in range(4):
        modules = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
        modules += ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
        parts += [f"encoder.layers.{layer}.{module}" for module in modules]
    names += [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    return {f"{stem}vision_tower.vision_tower.vision_model.{name}" for name in names}


PROJECTOR = ("0.weight", "0.bias", "2.weight", "2.bias")


def expected_names(model, family):
    """The LLM's own names, the projector's and the tower's."""
    stem = folders.STEM[family]
    llm = set(tiny.bare_model(model).state_dict()) - ({"lm_head.weight"} if family == "mpt" else set())
    return llm | {f"{stem}mm_projector.{name}" for name in PROJECTOR} | tower_names(stem)


def built(family, tower, way):
    """A model with its tower from its own files, from the checkpoint's config, or put in for training."""
    if way == "own files":
        return tiny.llava_model(family, tower)
    if way == "from config":
        model = tiny.llava_class(family)(tiny.llava_config(family, tower, unfreeze_mm_vision_tower=True))
        assert model.get_vision_tower().is_loaded
        return model
    config = tiny.llava_config(family, tower)
    del config.mm_vision_tower
    model = tiny.llava_class(family)(config)
    model.get_model().initialize_vision_modules(
        SimpleNamespace(
            vision_tower=str(tower),
            mm_vision_select_layer=-2,
            mm_vision_select_feature="patch",
            mm_projector_type="mlp2x_gelu",
        )
    )
    return model


@pytest.mark.parametrize("way", ["own files", "from config", "training"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_names_on_disk_are_the_references(family, tower, tmp_path, way, safe):
    model = built(family, tower, way)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    stored = load_weights(tmp_path)
    tied = {"lm_head.weight"} if family == "mpt" else set()
    assert set(stored) - tied == expected_names(model, family)
    for name, value in model.state_dict().items():
        if name in stored:
            assert torch.equal(stored[name], value), name


def test_a_trained_tower_is_saved_with_its_new_values(family, tower, tmp_path):
    model = built(family, tower, "own files")
    module = model.get_vision_tower().requires_grad_(True)
    ids = tiny.prompt(2, "image", 3)
    model(input_ids=ids, labels=ids, images=tiny.pixels()).loss.backward()
    name = "vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
    weight = module.vision_tower.vision_model.encoder.layers[1].mlp.fc1.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    model.save_pretrained(tmp_path)
    stored = load_weights(tmp_path)[folders.STEM[family] + name]
    assert torch.equal(stored, weight)
    assert not torch.equal(stored, before)


@pytest.mark.parametrize("key", ["v15", "v15_st", "v16", "v16_mistral", "v0", "mpt"])
def test_loaded_and_saved_again_has_the_same_names(key, checkpoints, tmp_path):
    folder = checkpoints / MODELS[key][0]
    model = load_pretrained_model(str(folder), None, "x", device="cpu")[1]
    model.save_pretrained(tmp_path)
    tied = {"lm_head.weight"} if key == "mpt" else set()
    assert (
        set(load_weights(tmp_path)) - tied
        == {name for name in load_weights(folder) if not name.endswith(("position_ids", "inv_freq"))} - tied
    )


def test_a_state_dict_given_by_the_trainer_is_saved_under_its_names(build, tmp_path):
    model = build()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=dict(state))  # transformers empties the dict
    stored = load_weights(tmp_path)
    assert set(stored) == set(state)
    assert all(torch.equal(stored[name], state[name]) for name in state)


@pytest.mark.parametrize("shard", ["40KB", "10GB"])
def test_saved_models_load_with_equal_logits(family, checkpoints, tmp_path, shard):
    model = tiny.llava_model(family, checkpoints / "tiny-clip", **folders.base_fields(family))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    folders.add_tokenizer(tmp_path, family, checkpoints)
    again = load_pretrained_model(str(tmp_path), None, "x", device="cpu", dtype=torch.float32)[1]
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(
            again(input_ids=ids, images=images).logits, model(input_ids=ids, images=images).logits
        )


def test_auto_classes_know_saved_models(family, build, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(again) is type(model)
    assert not again.get_vision_tower().is_loaded  # delayed, as in the reference
    again.get_vision_tower().load_model()
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels()
    with torch.no_grad():
        again.eval()
        torch.testing.assert_close(
            again(input_ids=ids, images=images).logits, model(input_ids=ids, images=images).logits
        )


# ------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_transformers_4_finds_theta_scaling_and_dtype(family, tower, tmp_path):
    """4.37 reads rope_theta, rope_scaling and torch_dtype; without them it takes its defaults silently."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 123456.0}
    model = tiny.llava_model(family, tower, rope_parameters=rope).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    content = folders.read_config(tmp_path)
    assert content["rope_theta"] == 123456.0
    assert content["torch_dtype"] == "bfloat16"
    assert (content["rope_scaling"]["type"], content["rope_scaling"]["factor"]) == ("linear", 2.0)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters["rope_theta"] == 123456.0
    assert again.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_config_of_transformers_4_and_ours_agree(family, tower, tmp_path):
    """Read, write, read: theta stays, and no scaling appears where there was none."""
    config = tiny.llava_config(family, tower).to_dict()
    for name in ("rope_parameters", "rope_scaling", "dtype"):
        config.pop(name, None)
    config.update(rope_theta=5e5, rope_scaling=None, torch_dtype="float16", transformers_version="4.37.2")
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = AutoConfig.from_pretrained(tmp_path)
    assert first.rope_parameters["rope_theta"] == 5e5
    first.save_pretrained(tmp_path)
    content = folders.read_config(tmp_path)
    assert (content["rope_theta"], content.get("rope_scaling")) == (5e5, None)
    assert content["torch_dtype"] == "float16"
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 5e5


def test_type_architecture_and_multimodal_fields_are_written(family, build, tmp_path):
    model = build(family, tokenizer_padding_side="left", mm_projector_lr=None)
    model.save_pretrained(tmp_path)
    content = folders.read_config(tmp_path)
    assert content["model_type"] == f"llava_{family}"
    assert content["architectures"] == [type(model).__name__]
    for name in ("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "image_grid_pinpoints"):
        assert content[name] == getattr(model.config, name)
    assert content["tokenizer_padding_side"] == "left"


def test_a_config_can_be_copied_and_built_from_its_dict(family, build):
    config = build(family).config
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


# ------------------------------------------------------------------------------------- generation config


VICUNA = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}


def test_vicunas_generation_config_can_be_saved(family, build, tmp_path, caplog):
    """transformers refuses sampling values without sampling; Vicuna-7B v1.5 has just that."""
    model = build(family)
    for name, value in VICUNA.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert (stored["do_sample"], stored["temperature"], stored["top_p"]) == (True, 0.9, 0.6)
    assert "do_sample=True" in caplog.text


OTHERS = {
    "top_k": ({"top_k": 20}, {"top_k": 20, "do_sample": True}),
    "typical_p": ({"typical_p": 0.5}, {"typical_p": 0.5, "do_sample": True}),
    "beams": ({"length_penalty": 2.0, "early_stopping": True}, {"length_penalty": None, "do_sample": None}),
    "both": ({"temperature": 0.2, "length_penalty": 2.0}, {"temperature": 0.2, "length_penalty": None}),
    "several": ({"num_return_sequences": 3}, {"num_return_sequences": None, "eos_token_id": 2}),
    "negative padding": ({"pad_token_id": -1}, {"eos_token_id": 2}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_contradictions_can_be_saved(case, build, tmp_path, caplog):
    given, expected = OTHERS[case]
    model = build()
    for name, value in given.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: stored.get(name) or None for name in expected} == expected
    assert "generation_config" in caplog.text


def test_an_ordinary_generation_config_stays(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    assert not json.loads((tmp_path / "generation_config.json").read_text()).get("do_sample")


def test_vicunas_generation_config_from_its_folder(checkpoints, tmp_path):
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    (base / "generation_config.json").write_text(json.dumps({**VICUNA, "bos_token_id": 1, "eos_token_id": 2}))
    folder = folders.projector("llama", tmp_path / "p", checkpoints, base)
    model = load_pretrained_model(str(folder), str(base), "x", device="cpu")[1]
    model.save_pretrained(tmp_path / "out")
    assert Path(tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_names_and_values_under_zero_3(tmp_path, checkpoints):
    """transformers renames a tower's keys twice there, unless told not to, when the checkpoint brings it."""
    pytest.importorskip("deepspeed")
    fields = {**folders.base_fields("llama"), "unfreeze_mm_vision_tower": True}
    model = tiny.llava_model("llama", checkpoints / "tiny-clip", **fields)
    with torch.no_grad():
        for value in model.get_vision_tower().parameters():
            value += 1.0
    model.save_pretrained(tmp_path / "in")
    script = Path(__file__).parents[1] / "zero3_save.py"
    environment = {
        **os.environ,
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "LOCAL_RANK": "0"},
        **{"WORLD_SIZE": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
        **({"CUDA_VISIBLE_DEVICES": ""} if torch.cuda.is_available() else {}),
    }
    command = [python(), str(script), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    got, want = load_weights(tmp_path / "out"), load_weights(tmp_path / "in")
    assert set(got) == set(want)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
