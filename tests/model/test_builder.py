"""load_pretrained_model: every layout, every LLM family, the call shapes of other projects, dtypes."""

from __future__ import annotations

import shutil

import folders
import pytest
import tiny
import torch
from recorded import MODELS, RECORDED, check_close

from llava.model.builder import load_pretrained_model, make_plan
from llava.model.checkpoints.files import load_weights

TEXTS = ["What do you see?", "The red cat sleeps.</s>USER: Where is it?", "two  spaces\n\nand lines 42"]
TEXTS += ["caf\u00e9 \u732b"]
LEADING = ["  two spaces", " one", "\n line"]


def load(path, base=None, name=None, **kwargs):
    kwargs = {"device": "cpu", **kwargs}
    return load_pretrained_model(str(path), base and str(base), name or path.name, **kwargs)


def check_weights(model, expected, atol=0.0):
    """Every expected weight is in the model, to within `atol`; returns the names of the model's others."""
    got = model.state_dict()
    assert set(expected) <= set(got), sorted(set(expected) - set(got))[:4]
    for name, value in expected.items():
        torch.testing.assert_close(got[name].float(), value.float(), atol=atol, rtol=0, msg=name)
    return {name for name in set(got) - set(expected) if not name.endswith(("inv_freq", "position_ids"))}


# ------------------------------------------------------------------------------------- recorded checkpoints


@pytest.mark.parametrize("key", MODELS)
def test_facts_are_the_references(key, checkpoints):
    """Class, float16, context length, tokenizer, matrix sizes, config, image processor, tower."""
    path, base = MODELS[key]
    tokenizer, model, processor, context = load(checkpoints / path, base and checkpoints / base)
    want = RECORDED["facts"][key]["default"]
    got = {
        "class": type(model).__name__,
        "context_len": context,
        "tokenizer_length": len(tokenizer),
        "input_rows": list(model.get_input_embeddings().weight.shape),
        "output_rows": list(model.get_output_embeddings().weight.shape),
        "model_dtype": str(model.get_input_embeddings().weight.dtype),
        "training": model.training,
        "token_ids": [tokenizer(text).input_ids for text in TEXTS],
        "leading_blanks": [tokenizer(text).input_ids for text in LEADING],
        "config": {name: getattr(model.config, name, None) for name in want["config"]},
    }
    special = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    got["special"] = [getattr(tokenizer, name) for name in special]
    if key == "plain":
        got["image_processor"] = processor
    else:
        tower = model.get_vision_tower()
        got["tower_loaded"] = tower.is_loaded
        got["tower"] = [tower.hidden_size, tower.num_patches, tower.num_patches_per_side]
        got["tower_trainable"] = any(parameter.requires_grad for parameter in tower.parameters())
        got["tower_dtype"] = str(tower.dtype)
        got["crop"] = processor.crop_size["height"]
        check_close(list(processor.image_mean), want["mean"], 1e-6)
        check_close(list(processor.image_std), want["std"], 1e-6)
    assert got == {name: value for name, value in want.items() if name not in ("mean", "std")}


@pytest.mark.parametrize("key", ["v15", "v16", "projector", "lora", "mpt"])
def test_an_explicit_device_map_casts_the_tower(key, checkpoints):
    path, base = MODELS[key]
    model = load(checkpoints / path, base and checkpoints / base, device_map="cpu")[1]
    assert str(model.get_vision_tower().dtype) == RECORDED["facts"][key]["tower_dtype_on_device_map_cpu"]


@pytest.mark.parametrize("key", ["v15", "v15_st", "v16", "v16_mistral", "v0", "mpt"])
def test_every_stored_weight_is_in_the_model(key, checkpoints):
    """Tower weights come from the tower's folder, unless the config says that the checkpoint brings them."""
    folder = checkpoints / MODELS[key][0]
    model = load(folder, torch_dtype=torch.float32)[1]
    stored = load_weights(folder)
    own_tower = key in ("v16", "v16_mistral")
    expected = {name: v for name, v in stored.items() if own_tower or "vision_tower" not in name}
    if key == "mpt":  # 608 rows for 600 tokens: the reference cuts them
        for name in ("transformer.wte.weight", "lm_head.weight"):
            expected[name] = expected[name][:600]
    others = check_weights(model, expected)
    assert all("vision_tower" in name or name == "lm_head.weight" for name in others)
    if key == "mpt":
        assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)  # tied
    clip = load_weights(checkpoints / "tiny-clip")
    prefix = "transformer." if key == "mpt" else "model."
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tower_weight = model.state_dict()[f"{prefix}vision_tower.vision_tower.{name}"]
    expected_weight = stored[f"{prefix}vision_tower.vision_tower.{name}"] if own_tower else clip[name]
    assert torch.equal(tower_weight, expected_weight.float())


def test_merged_lora_has_the_recorded_norms(checkpoints):
    model = load(checkpoints / "llava-tiny-v1.5-lora", checkpoints / "vicuna-tiny")[1]
    got = model.state_dict()
    for name, norm in RECORDED["merged_norms"].items():
        check_close(got[name].float().norm(), norm, 1e-4, 2e-3, name)
    base = load_weights(checkpoints / "vicuna-tiny")["model.layers.0.self_attn.q_proj.weight"]
    assert (got["model.layers.0.self_attn.q_proj.weight"] - base).abs().max() > 1e-3


def test_projector_folder_is_base_plus_projector(checkpoints):
    folder, base = checkpoints / "llava-tiny-pretrain", checkpoints / "vicuna-tiny"
    model = load(folder, base, dtype=torch.float32)[1]
    expected = {**load_weights(base), **load_weights(folder / "mm_projector.bin")}
    assert all("vision_tower" in name for name in check_weights(model, expected))


# ---------------------------------------------------------------------------- every layout, every family


@pytest.fixture
def base(family, tmp_path, checkpoints):
    """A text model of each family in turn."""
    return folders.text_base(family, tmp_path / "base", checkpoints)


def test_text_model(family, base):
    tokenizer, model, processor, context = load(base, dtype=torch.float32)
    assert (processor, context) == (None, 2048)
    assert not type(model).__name__.startswith("Llava")
    assert not check_weights(model, load_weights(base)) - {"lm_head.weight"}
    assert len(tokenizer) <= folders.VOCABULARY[family]


def test_whole_model_in_every_file_layout(family, tmp_path, checkpoints):
    folder = folders.whole(family, tmp_path / "m", checkpoints)
    stored = load_weights(folder)
    layouts = {
        "one safetensors": lambda path: path,
        "safetensors shards": lambda path: folders.shard(path, "model-{:05d}-of-{:05d}.safetensors"),
        "one bin": lambda path: folders.rewrite(path, lambda weights: None, "pytorch_model.bin"),
        "bin shards": lambda path: folders.shard(path, "pytorch_model-{:05d}-of-{:05d}.bin"),
    }
    for name, make in layouts.items():
        model = load(make(shutil.copytree(folder, tmp_path / name)), dtype=torch.float32)[1]
        assert type(model) is tiny.llava_class(family)
        assert not check_weights(model, stored) - {"lm_head.weight"}, name


def test_whole_model_without_tower_weights_reads_the_towers_own(family, tmp_path, checkpoints):
    """unfreeze_mm_vision_tower in a config does not promise that tower weights are in the checkpoint."""
    folder = folders.whole(family, tmp_path / "m", checkpoints, unfreeze_mm_vision_tower=True)

    def strip(weights):
        for name in [name for name in weights if "vision_tower" in name]:
            del weights[name]

    folders.rewrite(folder, strip, "model.safetensors")
    model = load(folder, dtype=torch.float32)[1]
    clip = load_weights(checkpoints / "tiny-clip")
    clip = {name: v for name, v in clip.items() if name.startswith("vision_model.")}
    check_weights(
        model.get_vision_tower().vision_tower, {n: v for n, v in clip.items() if "position_ids" not in n}
    )


def test_tuned_tower_comes_from_the_checkpoint(family, tmp_path, checkpoints):
    folder = folders.whole(family, tmp_path / "m", checkpoints, unfreeze_mm_vision_tower=True)

    def tune(weights):
        for name in weights:
            if "vision_tower" in name:
                weights[name] = weights[name] + 1

    folders.rewrite(folder, tune, "model.safetensors")
    model = load(folder, dtype=torch.float32)[1]
    assert not check_weights(model, load_weights(folder)) - {"lm_head.weight"}
    assert not any(parameter.requires_grad for parameter in model.get_vision_tower().parameters())


@pytest.mark.parametrize("fields", [{}, {"mm_patch_merge_type": "spatial_unpad"}], ids=["flat", "unpad"])
def test_projector_only(family, base, tmp_path, checkpoints, fields):
    folder = folders.projector(family, tmp_path / "x1", checkpoints, base, **fields)
    expected = {**load_weights(base), **load_weights(folder / "mm_projector.bin")}
    assert any("image_newline" in name for name in expected) == bool(fields)
    for model_base in (base, None):  # None: config.json names the base it was trained on
        model = load(folder, model_base, dtype=torch.float32)[1]
        assert type(model) is tiny.llava_class(family)
        others = check_weights(model, expected)
        assert all("vision_tower" in name or name == "lm_head.weight" for name in others)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_lora(family, base, tmp_path, checkpoints, safe):
    expected = folders.lora(family, tmp_path / "x1", base, checkpoints, safe=safe)
    expected = {name: v for name, v in expected.items() if "vision_tower" not in name}
    changed_name = next(name for name in expected if name.endswith(("q_proj.weight", "Wqkv.weight")))
    assert (expected[changed_name] - load_weights(base)[changed_name]).abs().max() > 0.01
    for model_base in (base, None):
        model = load(tmp_path / "x1", model_base, dtype=torch.float32)[1]
        assert type(model) is tiny.llava_class(family)
        check_weights(model, expected, atol=1e-5)


def test_loading_a_lora_warns_of_nothing(base, family, tmp_path, checkpoints, recwarn):
    """peft would list every tower layer that the adapter was never meant for."""
    folders.lora(family, tmp_path / "x1", base, checkpoints)
    model = load(tmp_path / "x1", base)[1]
    assert not [one for one in recwarn if "adapter" in str(one.message)]
    assert not any("lora" in name for name in model.state_dict())


def test_lora_of_a_text_model(tmp_path, checkpoints):
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    folders.lora("llama", tmp_path / "x1", base, checkpoints)
    (tmp_path / "x1" / "non_lora_trainables.bin").unlink()
    (tmp_path / "x1" / "config.json").unlink()
    _, model, processor, _ = load(tmp_path / "x1", base, dtype=torch.float32)
    assert processor is None
    assert type(model).__name__ == "LlamaForCausalLM"
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (model.state_dict()[name] - load_weights(base)[name]).abs().max() > 0.01


@pytest.mark.parametrize(
    "fields",
    [
        {"mm_projector_type": "identity"},
        {"mm_projector_type": "linear"},
        {"mm_projector_type": "mlp3x_gelu"},
        {"s2": True, "s2_scales": "56,112", "mm_hidden_size": 64},
        {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": 1},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_projectors_and_towers_come_back_as_configured(tmp_path, checkpoints, fields):
    settings = {**folders.base_fields("llama"), **fields}
    original = tiny.llava_model("llama", checkpoints / "tiny-clip", **settings)
    original.save_pretrained(tmp_path)
    folders.add_tokenizer(tmp_path, "llama", checkpoints)
    _, model, processor, _ = load(tmp_path, dtype=torch.float32)
    edge = processor.crop_size["height"]
    assert edge == (112 if "s2" in fields else 56)
    ids, images = tiny.prompt(3, "image", 2), tiny.pixels(1, 3, edge, edge)
    with torch.no_grad():
        got = model(input_ids=ids, images=images).logits
        assert torch.equal(got, original(input_ids=ids, images=images).logits)


def test_projector_with_start_and_end_rows(tmp_path, checkpoints):
    """Stage 1 with mm_use_im_start_end stores the embeddings; they replace the base's."""
    from llava.model.checkpoints.files import save_tensors

    base = checkpoints / "vicuna-tiny"
    sizes = {"hidden_size": 64, "intermediate_size": 112, "num_key_value_heads": 4, "vocab_size": 1002}
    folder = folders.projector("llama", tmp_path / "x1", checkpoints, mm_use_im_start_end=True, **sizes)
    rows = torch.randn(1002, 64, generator=torch.Generator().manual_seed(0))
    weights = {**load_weights(folder / "mm_projector.bin"), "model.embed_tokens.weight": rows}
    save_tensors(weights, folder / "mm_projector.bin")
    tokenizer, model, _, _ = load(folder, base, dtype=torch.float32)
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [1000, 1001]
    assert len(tokenizer) == 1002
    assert torch.equal(model.get_input_embeddings().weight, rows)
    assert model.get_output_embeddings().weight.shape == (1002, 64)


def test_first_release_checkpoint(checkpoints, tmp_path):
    """Configs of the first releases say model_type "llava"."""
    folder = shutil.copytree(checkpoints / "llava-tiny-v0", tmp_path / "x1")
    folders.edit_config(folder, model_type="llava")
    model = load(folder, dtype=torch.float32)[1]
    assert type(model).__name__ == "LlavaLlamaForCausalLM"
    stored = load_weights(checkpoints / "llava-tiny-v0")
    others = check_weights(model, {n: v for n, v in stored.items() if "vision_tower" not in n})
    assert all("vision_tower" in name for name in others)


@pytest.mark.parametrize("key", ["v15", "v16_mistral", "mpt", "v0", "lora", "projector", "plain"])
def test_the_folders_name_decides_nothing(key, checkpoints, tmp_path):
    path, base = MODELS[key]
    renamed = shutil.copytree(checkpoints / path, tmp_path / "x1")
    base = base and checkpoints / base
    ours, named = load(renamed, base)[1], load(checkpoints / path, base)[1]
    assert type(ours) is type(named)
    assert not check_weights(ours, named.state_dict())


def test_plans(checkpoints):
    base = str(checkpoints / "vicuna-tiny")
    kinds = {
        "llava-tiny-v1.5": "full",
        "llava-tiny-mpt": "full",
        "vicuna-tiny": "text",
        "llava-tiny-pretrain": "projector",
        "llava-tiny-v1.5-lora": "lora",
    }
    for name, kind in kinds.items():
        plan = make_plan(str(checkpoints / name), base)
        assert plan.kind == kind
        assert plan.source == (base if kind in ("projector", "lora") else str(checkpoints / name))
