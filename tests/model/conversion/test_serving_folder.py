"""An exported folder has what vLLM and SGLang read; what is missing in a broken one is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from convert_folders import Exports
from safetensors.torch import load_file, save_file

from llava.model.conversion.serving_folder import missing_for_serving


@pytest.fixture(scope="module")
def exports(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(checkpoints, tmp_path_factory.mktemp("exports"))


@pytest.mark.parametrize("key", ["v15", "v16_mistral"])
def test_an_export_is_complete(key: str, exports: Exports) -> None:
    assert missing_for_serving(exports.get(key)) == []


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def field(name: str, key: str, value: object = None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content[key] = value
        (folder / name).write_text(json.dumps(content))

    return change


def without_template(folder: Path) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink()
    field("tokenizer_config.json", "chat_template")(folder)


def without_tensors(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({name: value for name, value in load_file(file).items() if part not in name}, file)

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (without("config.json"), "config.json is missing"),
    "another class": (
        field("config.json", "architectures", ["LlavaLlamaForCausalLM"]),
        "LlavaLlamaForCausalLM",
    ),
    "no image token": (field("config.json", "image_token_index"), "no image_token_index"),
    "another image token": (field("config.json", "image_token_index", 5), "tokenizer.json has <image> as"),
    "no vision part": (field("config.json", "vision_config"), "no vision_config"),
    "no generation config": (without("generation_config.json"), "generation_config.json is missing"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json is missing"),
    "no template": (without_template, "no chat template"),
    "no image processor": (without("preprocessor_config.json"), "preprocessor_config.json is missing"),
    "no patch size": (
        field("processor_config.json", "patch_size"),
        "processor_config.json has no patch_size",
    ),
    "JSON that is none": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
    "no weights": (without("model.safetensors"), "no *.safetensors"),
    "weights that are cut": (cut, "model.safetensors"),
    "no head": (without_tensors("lm_head"), "no language_model.lm_head.weight"),
    "no projector": (without_tensors("multi_modal_projector"), "no multi_modal_projector.linear_1.weight"),
    "a layer less": (without_tensors("language_model.model.layers.1."), "no layer 1 of text_config"),
    "a tower's layer less": (
        without_tensors("vision_model.encoder.layers.0."),
        "no layer 0 of vision_config",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_missing_is_named(case: str, exports: Exports, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(exports.get("v15"), folder)
    change, words = BROKEN[case]
    change(folder)
    assert any(words in one for one in missing_for_serving(folder)), missing_for_serving(folder)
