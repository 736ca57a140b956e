"""load_pretrained_model: every layout, every LLM family, the call shapes of other projects, dtypes."""

from __future__ import annotations

import inspect
import shutil

import folders
import pytest
import tiny
import torch
from recorded import MODELS, RECORDED, check_close

from llava.model.builder import best_device, best_dtype, load_pretrained_model, make_plan
from llava.model.checkpoint import load_weights

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


def test_projector_with_start_and_end_rows(tmp_path, checkpoints):
    """Stage 1 with mm_use_im_start_end stores the embeddings; they replace the base's."""
    from llava.model.checkpoint import save_tensors

    base = checkpoints / "vicuna-tiny"
    folder = folders.projector("llama", tmp_path / "x1", checkpoints, mm_use_im_start_end=True, vocab_size=1002,
                               hidden_size=64, intermediate_size=112, num_key_value_heads=4)  # fmt: skip
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
    assert all("vision_tower" in name for name in check_weights(
        model, {n: v for n, v in load_weights(checkpoints / "llava-tiny-v0").items() if "vision_tower" not in n}
    ))  # fmt: skip


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


# ------------------------------------------------------------------------------------------- call shapes


def test_signature():
    """The reference's positional order, and its defaults."""
    parameters = inspect.signature(load_pretrained_model).parameters
    names = ["model_path", "model_base", "model_name", "load_8bit", "load_4bit", "device_map", "device"]
    assert list(parameters)[:8] == [*names, "use_flash_attn"]
    defaults = [parameters[name].default for name in [*names[3:], "use_flash_attn"]]
    assert defaults == [False, False, "auto", "cuda", False]


CALLS = {
    "lmms-eval": {"device_map": "cpu", "multimodal": True, "attn_implementation": "sdpa"},
    "vlmevalkit": {"device_map": "cpu"},
    "no device_map": {"device_map": None},
    "next": {
        "device_map": "cpu",
        "torch_dtype": "bfloat16",
        "attn_implementation": "eager",
        "overwrite_config": {"mm_patch_merge_type": "spatial_unpad", "max_sequence_length": 77},
        "customized_config": None,
    },
    "defaults": {},
    "eager": {"attn_implementation": "eager", "device": "cpu"},
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_of_other_projects(call, checkpoints):
    path = str(checkpoints / "llava-tiny-v1.6")
    tokenizer, model, processor, context = load_pretrained_model(path, None, "llava-tiny", **CALLS[call])
    model.tie_weights()
    model.eval()
    tower = model.get_vision_tower()
    assert tower.is_loaded
    tower.load_model(device_map="cpu")
    assert model.model.vision_tower is tower is model.get_model().get_vision_tower()
    assert model.config.__dict__["mm_hidden_size"] == 32
    assert processor.crop_size["height"] == 56
    assert context == (77 if call == "next" else 2048)
    expected = torch.bfloat16 if call == "next" else torch.float16
    assert model.dtype == expected
    wanted = CALLS[call].get("attn_implementation", "sdpa")
    assert model.config._attn_implementation == wanted
    assert len(tokenizer) == 1000


def test_keywords_only_and_positional(checkpoints):
    path = str(checkpoints / "llava-tiny-v1.5")
    by_name = load_pretrained_model(model_path=path, model_base=None, model_name="x", device_map="cpu")
    in_order = load_pretrained_model(path, None, "x", False, False, "auto", "cpu")
    assert type(by_name[1]) is type(in_order[1])


def test_paths_may_be_path_objects(checkpoints):
    base = checkpoints / "vicuna-tiny"
    model = load_pretrained_model(checkpoints / "llava-tiny-pretrain", base, "x", device="cpu")[1]
    assert type(model).__name__ == "LlavaLlamaForCausalLM"


def test_loglikelihood_call(checkpoints, recorded_model):
    """lmms-eval reads loss and logits by key, with the cache on."""
    model = recorded_model("v15")
    ids = tiny.prompt(4, "image", 5)
    images = tiny.pixels(1, 3, 56, 56)
    with torch.inference_mode():
        out = model(input_ids=ids, labels=ids, images=images, use_cache=True, image_sizes=[(56, 56)])
    assert out["loss"].ndim == 0
    assert out["logits"].shape == (1, 9 + 16, 1000)


def test_overwritten_fields_reach_the_model(checkpoints):
    folder = checkpoints / "llava-tiny-v1.5"
    fields = {"mm_vision_select_layer": -1, "tokenizer_padding_side": "left"}
    model = load(folder, overwrite_config=fields, dtype=torch.float32)[1]
    assert model.get_vision_tower().select_layer == -1
    assert model.config.tokenizer_padding_side == "left"
    assert load(folder)[1].get_vision_tower().select_layer == -2


def test_a_customized_config_replaces_the_folders(checkpoints):
    from llava.model import LlavaConfig

    folder = checkpoints / "llava-tiny-v1.5"
    config = LlavaConfig.from_pretrained(folder)
    config.mm_vision_select_feature = "cls_patch"
    model = load(folder, customized_config=config)[1]
    assert model.get_vision_tower().select_feature == "cls_patch"


def test_context_length_comes_from_the_config(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints / "llava-tiny-v1.5", tmp_path / "x1")
    folders.edit_config(folder, max_sequence_length=4096)
    assert load(folder)[3] == 4096


def test_lora_name_without_base_warns(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints / "llava-tiny-v1.5", tmp_path / "llava-lora-merged")
    with pytest.warns(UserWarning, match="model_base"):
        load(folder)


# ------------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("as_name", [False, True], ids=["", "name"])
def test_dtype_is_honoured(checkpoints, dtype, keyword, as_name):
    value = str(dtype).removeprefix("torch.") if as_name else dtype
    model = load(checkpoints / "llava-tiny-v1.5", **{keyword: value})[1]
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_dtype_of_projector_and_lora_folders(family, tmp_path, checkpoints):
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    folders.projector(family, tmp_path / "p", checkpoints)
    folders.lora(family, tmp_path / "l", base, checkpoints)
    for folder in ("p", "l"):
        model = load(tmp_path / folder, base, dtype="bfloat16")[1]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_auto_is_the_checkpoints_dtype(checkpoints):
    assert load(checkpoints / "llava-tiny-v1.6-mistral", dtype="auto")[1].dtype == torch.bfloat16


def test_unknown_dtype(checkpoints):
    with pytest.raises(ValueError, match=r"'float12'; expected float16"):
        load(checkpoints / "llava-tiny-v1.5", dtype="float12")


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_of_any_dtype(checkpoints, recorded_model, model_dtype, image_dtype):
    model = load(checkpoints / "llava-tiny-v1.6", dtype=model_dtype)[1]
    ids, images = tiny.prompt(4, "image", 5), tiny.pixels(1, 3, 3, 56, 56)
    with torch.no_grad():
        got = model(input_ids=ids, images=images.to(image_dtype), image_sizes=[(112, 56)]).logits
        exact = recorded_model("v16")(input_ids=ids, images=images, image_sizes=[(112, 56)]).logits
        new = model.generate(
            ids, images=list(images.to(image_dtype)), image_sizes=[(112, 56)], max_new_tokens=2
        )
    assert got.dtype == model_dtype
    assert (got.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert new.shape[0] == 1


def test_best_device_and_dtype():
    assert best_device() in ("cuda", "mps", "cpu")
    assert best_dtype("cuda") == best_dtype("cuda:1") == torch.float16
    assert best_dtype("cpu") in (torch.float32, torch.bfloat16)
