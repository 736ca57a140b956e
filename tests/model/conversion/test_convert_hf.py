"""LLaVA checkpoints to llava-hf folders and back: the same answers, the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from convert_folders import (
    CONVERTIBLE,
    Exports,
    assert_same_weights,
    changed_copy,
    edit,
    like_the_hub,
    weights,
)
from PIL import Image
from text_data import make_image
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.conversion.keys import VOCABULARY_WEIGHTS, from_hf_name, to_hf_name
from llava.model.conversion.parity import FULL, Settings, hf_processor, load_hf
from llava.model.convert_hf import from_hf, to_hf


@pytest.fixture(scope="module")
def exports(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(checkpoints, tmp_path_factory.mktemp("exports"))


def fast(*keys: str, among: tuple[str, ...]) -> list[Any]:
    """Parameters of a test: those that are not named are marked slow."""
    return [key if key in keys else pytest.param(key, marks=pytest.mark.slow) for key in among]


def load_both(exports: Exports, key: str) -> tuple[Any, Any, Any]:
    """Processor and model of transformers, and what load_pretrained_model returns."""
    folder = str(exports.get(key))
    path, base = exports.source(key)
    config = transformers.AutoConfig.from_pretrained(folder)
    ours = load_pretrained_model(path, base, "", device="cpu", dtype=torch.float32)
    return hf_processor(folder, config), load_hf(folder, config, FULL), ours


@pytest.mark.parametrize("key", fast("v15", "v16_mistral", among=CONVERTIBLE))
def test_both_models_agree(key: str, exports: Exports) -> None:
    folder = exports.get(key)
    report = exports.reports[key]
    assert report.passed
    assert report.logit_difference <= 1e-5
    assert report.largest_logit > 1  # they are about something
    assert report.pixel_difference == 0
    assert not report.texts_different
    assert json.loads((folder / "parity.json").read_text())["passed"] is True


def test_the_folder_is_complete(exports: Exports) -> None:
    folder = exports.get("v16_mistral")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "llava_config.json",
        "parity.json",
        "processor_config.json",
        "preprocessor_config.json",
        "chat_template.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert config["image_token_index"] == config["image_token_id"] == 1000
    assert config["pad_token_id"] == 1001
    assert config["image_seq_length"] == 16
    assert config["image_grid_pinpoints"] == [[112, 56], [56, 112], [112, 112], [56, 168], [168, 56]]
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    text = config["text_config"]
    assert (text["model_type"], text["vocab_size"], text["rope_theta"]) == ("mistral", 1024, 1e6)
    assert not [name for name in text if name.startswith(("mm_", "image_", "tokenizer_"))]
    assert config["vision_config"]["hidden_act"] == "quick_gelu"
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["processor_class"] == "LlavaNextProcessor"
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (14, 1)
    names = set(weights(folder))
    assert "language_model.model.embed_tokens.weight" in names
    assert "vision_tower.vision_model.pre_layrnorm.weight" in names
    assert "image_newline" in names


def test_new_rows_lie_at_the_mean_and_are_never_chosen(exports: Exports) -> None:
    found = weights(exports.get("v15"))
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        old, new = found[name][:1000].float(), found[name][1000:].float()
        assert new.shape[0] == 24
        assert (new - old.mean(0)).abs().max() < 0.05 * old.std()
        assert new.std(0).max() > 0  # not all the same: they can be trained apart
    head = found["language_model.lm_head.weight"].float()
    hidden = torch.randn(500, head.shape[1], generator=torch.Generator().manual_seed(0))
    assert (hidden @ head.T).argmax(-1).max() < 1000


@pytest.mark.parametrize("key", fast("v16", among=("v15", "v16")))
def test_transformers_answers_as_llava_does(key: str, exports: Exports) -> None:
    processor, theirs, (tokenizer, ours, image_processor, _) = load_both(exports, key)
    image = make_image({"w": 90, "h": 70})
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    conversation = conv_templates["llava_v1"].copy()
    conversation.append_message(conversation.roles[0], "<image>\nWhat is this?")
    conversation.append_message(conversation.roles[1], None)
    assert prompt == conversation.get_prompt()
    inputs = processor(text=[prompt], images=[image], return_tensors="pt")
    their_ids = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    pixels = process_images([image], image_processor, ours.config)
    our_ids = ours.generate(
        ids, images=pixels, image_sizes=[image.size], max_new_tokens=8, do_sample=False, pad_token_id=0
    )[0]
    assert their_ids.tolist() == our_ids.tolist()


SIZES = [(90, 70), (70, 90), (56, 56), (300, 31), (10, 200), (57, 56)]


@pytest.mark.parametrize(("key", "aspect"), [("v15", "pad"), ("v15", "square"), ("v16", "anyres")])
def test_pixel_values_are_llavas(key: str, aspect: str, exports: Exports, tmp_path: Path) -> None:
    folder = exports.get(key)
    if aspect == "square":
        source = changed_copy(exports.source("v15")[0], tmp_path / "llava", image_aspect_ratio="square")
        folder = tmp_path / "hf"
        to_hf(str(source), folder, parity=None)
    processor, _, (_, model, image_processor, _) = load_both(exports, key)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model.config.image_aspect_ratio = aspect
    for mode in ("RGB", "L", "RGBA"):
        for width, height in SIZES:
            image: Image.Image = make_image({"w": width, "h": height, "mode": mode})
            ours = process_images([image.convert("RGB")], image_processor, model.config)[0]
            assert torch.equal(theirs([image], return_tensors="pt")["pixel_values"][0], ours), (
                mode,
                width,
                height,
            )


# ----------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("key", fast("v16_mistral", among=("v15", "v16", "v16_mistral")))
def test_llava_to_hf_to_llava_is_bit_equal(
    key: str, exports: Exports, tmp_path: Path, checkpoints: Path
) -> None:
    source = exports.source(key)[0]
    report = from_hf(str(exports.get(key)), tmp_path / "back", vision_tower=str(checkpoints / "tiny-clip"))
    assert report is not None and report.passed
    assert not report.texts_different
    original = weights(source)
    if key == "v15":  # stored, but never read: the tower is frozen and has files of its own
        original = {name: value for name, value in original.items() if "vision_tower" not in name}
    assert_same_weights(original, weights(tmp_path / "back"))
    before, after = (
        json.loads((Path(one) / "config.json").read_text()) for one in (source, tmp_path / "back")
    )
    for name, value in before.items():
        if name != "transformers_version":
            assert after.get(name) == value, name
    assert not (tmp_path / "back" / "vision_tower").exists()


@pytest.mark.parametrize("key", fast("v15", among=("v15", "v16_mistral")))
def test_hf_to_llava_to_hf_is_bit_equal(key: str, exports: Exports, tmp_path: Path) -> None:
    from_hf(str(exports.get(key)), tmp_path / "llava", parity=None)
    to_hf(str(tmp_path / "llava"), tmp_path / "hf", parity=None, conv_mode="llava_v1")
    assert_same_weights(weights(exports.get(key)), weights(tmp_path / "hf"))  # padding rows too
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_text() == (exports.get(key) / name).read_text(), name


def test_the_tower_comes_as_a_folder_of_its_own(exports: Exports, tmp_path: Path) -> None:
    from_hf(str(exports.get("v16")), tmp_path / "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["mm_vision_tower"] == str(tmp_path / "llava" / "vision_tower")
    assert config["unfreeze_mm_vision_tower"] is False
    tower = transformers.CLIPVisionModel.from_pretrained(tmp_path / "llava" / "vision_tower")
    stored = weights(exports.get("v16"))["vision_tower.vision_model.pre_layrnorm.weight"]
    assert torch.equal(tower.pre_layrnorm.weight.to(stored.dtype), stored)
    assert not [name for name in weights(tmp_path / "llava") if "vision_tower" in name]


@pytest.mark.slow
def test_a_tower_of_other_weights_is_kept_in_the_checkpoint(
    exports: Exports, tmp_path: Path, checkpoints: Path
) -> None:
    changed = tmp_path / "hf"
    shutil.copytree(exports.get("v15"), changed)
    state = weights(changed)
    state["vision_tower.vision_model.pre_layrnorm.weight"] += 0.5
    from safetensors.torch import save_file

    save_file(state, changed / "model.safetensors", {"format": "pt"})
    report = from_hf(str(changed), tmp_path / "llava", vision_tower=str(checkpoints / "tiny-clip"))
    assert report is not None and report.passed
    assert json.loads((tmp_path / "llava" / "config.json").read_text())["unfreeze_mm_vision_tower"] is True


# ------------------------------------------------------------------------------------------ folders of others


@pytest.mark.parametrize("key", fast("v16_mistral", among=("v15", "v16_mistral")))
@pytest.mark.parametrize("old_names", [pytest.param(True, marks=pytest.mark.slow), False])
def test_folders_that_transformers_saved(key: str, old_names: bool, exports: Exports, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(exports.get(key))
    model_class = getattr(transformers, config.architectures[0])
    model = model_class.from_pretrained(exports.get(key), dtype="auto")
    model.save_pretrained(tmp_path / "hf", save_original_format=old_names)
    transformers.AutoProcessor.from_pretrained(exports.get(key)).save_pretrained(tmp_path / "hf")
    names = set(weights(tmp_path / "hf"))
    assert any(name.startswith("model.language_model.") for name in names) is not old_names
    report = from_hf(str(tmp_path / "hf"), tmp_path / "llava")
    assert report is not None and report.passed
    assert json.loads((tmp_path / "llava" / "config.json").read_text())["vocab_size"] == 1000
    assert not (tmp_path / "llava" / "tokenizer.model").exists()  # nor had the source one
    again = to_hf(str(tmp_path / "llava"), tmp_path / "again", conv_mode="llava_v1")
    assert again is not None and again.passed
    settings = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    expected = {from_hf_name(name): value for name, value in weights(exports.get(key)).items()}
    found = weights(tmp_path / "llava")
    for name, value in found.items():
        rows = 1000 if name in VOCABULARY_WEIGHTS else value.shape[0]
        assert torch.equal(value, expected[name].to(value.dtype)[:rows] if value.ndim else expected[name]), (
            name
        )


@pytest.mark.parametrize("key", fast("v15", among=("v15", "v16")))
def test_folders_of_the_hub(
    key: str, exports: Exports, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = like_the_hub(exports.get(key), tmp_path / "hub")
    report = from_hf(str(hub), tmp_path / "llava", conv_mode="llava_v1")
    assert report is not None and report.passed
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["image_aspect_ratio"] == ("square" if key == "v15" else "anyres")
    assert config["conv_template"] == "llava_v1"
    assert ("--image-aspect-ratio pad" in caplog.text) is (key == "v15")


@pytest.mark.slow
def test_a_hub_folder_can_be_told_to_pad(exports: Exports, tmp_path: Path) -> None:
    hub = like_the_hub(exports.get("v15"), tmp_path / "hub")
    report = from_hf(str(hub), tmp_path / "llava", aspect="pad")
    assert report is not None and report.passed  # compared on a square image
    assert json.loads((tmp_path / "llava" / "config.json").read_text())["image_aspect_ratio"] == "pad"


# ------------------------------------------------------------------------------------------ other checkpoints


@pytest.mark.slow
def test_start_and_end_tokens(exports: Exports, tmp_path: Path) -> None:
    source = changed_copy(
        exports.source("v15_st")[0], tmp_path / "llava", mm_use_im_start_end=True, vocab_size=1002
    )
    state = weights(source)
    for name in VOCABULARY_WEIGHTS:
        state[name] = torch.cat([state[name], state[name][5:7] * 2])
    for file in source.glob("model*.safetensors*"):
        file.unlink()
    torch.save(state, source / "pytorch_model.bin")
    report = to_hf(str(source), tmp_path / "hf")
    assert report is not None and report.passed
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["image_token_index"] == 1002
    assert "<im_start><image><im_end>" in (tmp_path / "hf" / "chat_template.jinja").read_text()


@pytest.mark.slow
def test_a_token_without_a_stored_row(exports: Exports, tmp_path: Path) -> None:
    """The loader draws such a row at random; here it lies at the mean, and is not compared."""
    source = changed_copy(exports.source("v15")[0], tmp_path / "llava", mm_use_im_patch_token=True)
    report = to_hf(str(source), tmp_path / "hf")
    assert report is not None and report.passed
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["image_token_index"] == 1001


@pytest.mark.slow
def test_cls_features(exports: Exports, tmp_path: Path) -> None:
    source = changed_copy(exports.source("v15")[0], tmp_path / "llava", mm_vision_select_feature="cls_patch")
    report = to_hf(str(source), tmp_path / "hf")
    assert report is not None and report.passed
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["image_seq_length"], config["vision_feature_select_strategy"]) == (17, "full")
    back = from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert back is not None and back.passed
    assert (
        json.loads((tmp_path / "back" / "config.json").read_text())["mm_vision_select_feature"] == "cls_patch"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("key", "mode"), [("v15", "llava_llama_2"), ("v16", "chatml_direct"), ("v15", "v0")])
def test_other_templates(key: str, mode: str, exports: Exports, tmp_path: Path) -> None:
    report = to_hf(exports.source(key)[0], tmp_path / "hf", conv_mode=mode)
    assert report is not None and report.passed


def test_the_template_that_training_wrote_is_taken(exports: Exports, tmp_path: Path) -> None:
    source = changed_copy(exports.source("v15")[0], tmp_path / "llava-v1", conv_template="chatml_direct")
    to_hf(str(source), tmp_path / "hf", parity=None)
    assert "<|im_start|>" in (tmp_path / "hf" / "chat_template.jinja").read_text()


def test_an_inconsistent_generation_config_is_made_consistent(exports: Exports, tmp_path: Path) -> None:
    source = changed_copy(exports.source("v15")[0], tmp_path / "llava")
    edit(source / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)
    to_hf(str(source), tmp_path / "hf", parity=None)
    config = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    config.validate(strict=True)
    assert (config.do_sample, config.temperature, config.pad_token_id) == (True, 0.9, 1001)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_rounded_on_demand(dtype: torch.dtype, exports: Exports, tmp_path: Path) -> None:
    report = to_hf(exports.source("v15")[0], tmp_path / "hf", dtype=dtype)
    assert report is not None and report.passed
    assert {value.dtype for value in weights(tmp_path / "hf").values()} == {dtype}
    assert (
        json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == str(dtype).split(".")[1]
    )


@pytest.mark.slow
def test_parity_in_a_smaller_dtype(exports: Exports, tmp_path: Path) -> None:
    report = to_hf(exports.source("v15")[0], tmp_path / "hf", parity=Settings(torch.bfloat16))
    assert report is not None and report.passed
    assert report.dtype == "bfloat16"
    assert report.tolerance > 1e-3


def test_shards(exports: Exports, tmp_path: Path) -> None:
    report = to_hf(exports.source("v15")[0], tmp_path / "hf", max_shard_bytes=200_000)
    assert report is not None and report.passed
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert {file.name for file in (tmp_path / "hf").glob("*.safetensors")} == shards
    assert all(file.stat().st_size < 250_000 for file in (tmp_path / "hf").glob("*.safetensors"))
    assert_same_weights(weights(exports.get("v15")), weights(tmp_path / "hf"))


def test_names_there_and_back(exports: Exports) -> None:
    for name in weights(exports.get("v16")):
        assert to_hf_name(from_hf_name(name)) == name
    assert (
        from_hf_name("model.language_model.layers.0.mlp.up_proj.weight")
        == "model.layers.0.mlp.up_proj.weight"
    )
    assert from_hf_name("model.vision_tower.embeddings.class_embedding") == (
        "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    )
    with pytest.raises(KeyError):
        from_hf_name("model.qformer.query")
