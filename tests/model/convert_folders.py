"""Folders for the tests of convert_hf: exports made once, and folders as others write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recorded
import torch

from llava.model.checkpoints import files
from llava.model.conversion.parity import Report
from llava.model.convert_hf import to_hf

CONVERTIBLE = ("v15", "v15_st", "v16", "v16_mistral", "lora", "projector")


class Exports:
    """Exported folders of the recorded checkpoints, made at their first use and left as they are."""

    def __init__(self, checkpoints: Path, root: Path) -> None:
        self.checkpoints, self.root = checkpoints, root
        self.reports: dict[str, Report] = {}

    def source(self, key: str) -> tuple[str, str | None]:
        """Folder and base of a recorded checkpoint."""
        folder, base = recorded.MODELS[key]
        return str(self.checkpoints / folder), base and str(self.checkpoints / base)

    def get(self, key: str) -> Path:
        """The exported folder of a checkpoint; its report is in `reports`."""
        if key not in self.reports:
            path, base = self.source(key)
            mode = None if base is None else "llava_v1"
            report = to_hf(path, self.root / key, base=base, conv_mode=mode)
            assert report is not None
            self.reports[key] = report
        return self.root / key


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """The weights of a folder without those that models recompute."""
    found = files.load_weights(folder)
    return {name: value for name, value in found.items() if not files.is_recomputed(name)}


def assert_same_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Names, dtypes and bits are equal."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes a field away."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def changed_copy(source: Path | str, target: Path, **changes: Any) -> Path:
    """Copy a checkpoint and change its config.json."""
    shutil.copytree(source, target)
    edit(target / "config.json", **changes)
    return target


def like_the_hub(export: Path, target: Path) -> Path:
    """Make of an export what llava-hf put on the hub for transformers 4.37.

    Its config leaves out defaults, images are not padded, no file says how long an image is, and spaces
    follow every special token (a tokenizer.json without our rules).
    """
    shutil.copytree(export, target)
    for name in ("llava_config.json", "processor_config.json", "chat_template.json", "chat_template.jinja"):
        (target / name).unlink()
    for name in ("vision_feature_select_strategy", "projector_hidden_act", "multimodal_projector_bias"):
        edit(
            target / "config.json",
            **{name: None, "image_token_id": None, "image_seq_length": None, "dtype": None},
        )
    if json.loads((target / "config.json").read_text())["model_type"] == "llava":
        edit(target / "preprocessor_config.json", image_processor_type="CLIPImageProcessor", do_pad=None)
    edit(target / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", chat_template=None)
    file = target / "tokenizer.json"
    content = json.loads(file.read_text())
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space],
    }
    for token in content["added_tokens"]:
        token["normalized"] = False
    file.write_text(json.dumps(content))
    added = json.loads((target / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    plain = {index: {**token, "normalized": False} for index, token in added.items()}
    edit(target / "tokenizer_config.json", added_tokens_decoder=plain)
    return target
