"""load_pretrained_model as other projects call it: keywords, configs, dtypes."""

from __future__ import annotations

import inspect
import shutil
import sys

import folders
import pytest
import tiny
import torch

from llava.model.builder import best_device, best_dtype, load_pretrained_model
from llava.model.checkpoints.files import CheckpointError
from llava.utils import UserError


def load(path, base=None, **kwargs):
    kwargs = {"device": "cpu", **kwargs}
    return load_pretrained_model(str(path), base and str(base), path.name, **kwargs)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("keywords", [{"device_map": "cuda:0"}, {"device": "cuda:0"}, {"device": "nowhere"}])
def test_a_device_that_is_not_here_is_one_sentence(checkpoints, keywords):
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_pretrained_model(str(checkpoints / "llava-tiny-v1.5"), None, "x", **keywords)
    assert "\n" not in str(caught.value)


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


def test_overwritten_fields_of_a_text_model(checkpoints):
    folder = checkpoints / "vicuna-tiny"
    _, model, _, context = load(folder, overwrite_config={"rms_norm_eps": 0.5, "max_sequence_length": 99})
    assert (model.config.rms_norm_eps, model.model.norm.variance_epsilon, context) == (0.5, 0.5, 99)


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


def test_flash_attention_that_is_not_installed(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(UserError, match="'flash_attn'.*pip install"):
        load(checkpoints / "llava-tiny-v1.5", use_flash_attn=True)


def test_mpt_says_that_it_has_eager_attention_only(checkpoints, caplog):
    model = load(checkpoints / "llava-tiny-mpt", attn_implementation="sdpa")[1]
    assert model.config._attn_implementation == "eager"
    assert "llava_mpt has only eager attention" in caplog.text


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
