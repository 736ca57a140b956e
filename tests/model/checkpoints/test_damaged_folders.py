"""Damaged folders of every kind: each file in each way, and single values: loaded, or one clear sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import damages
import pytest

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError
from llava.model.tools.inspection import inspect_checkpoint
from llava.utils import UserError

# checkpoint -> its base; "tiny-clip" is damaged as the vision tower of a whole one
BASES = {
    "llava-tiny-v1.5": None,
    "llava-tiny-v1.5-st": None,
    "llava-tiny-v1.5-lora": "vicuna-tiny",
    "llava-tiny-pretrain": "vicuna-tiny",
    "llava-tiny-v1.6": None,
    "llava-tiny-mpt": None,
    "tiny-clip": None,
}
DATA = Path(__file__).parents[2] / "data" / "checkpoints"
FILES = [(name, file.name) for name in BASES for file in sorted((DATA / name).iterdir()) if file.is_file()]
# files without which a checkpoint still is what it was
MAY_BE_MISSING = {
    "generation_config.json", "special_tokens_map.json", "tokenizer_config.json", "preprocessor_config.json",
    "added_tokens.json", "README.md", "adapter_config.json",
}  # fmt: skip


class Damaged:
    """A copy of a checkpoint in which one file can be damaged, as itself or as the tower of another."""

    def __init__(self, name: str, checkpoints: Path, folder: Path) -> None:
        self.base = None if BASES[name] is None else checkpoints / str(BASES[name])
        self.folder = self.place = Path(shutil.copytree(checkpoints / name, folder / name))
        if name == "tiny-clip":
            self.folder = Path(shutil.copytree(checkpoints / "llava-tiny-v1.5", folder / "llava"))
            config = json.loads((self.folder / "config.json").read_text())
            config["mm_vision_tower"] = str(self.place)
            (self.folder / "config.json").write_text(json.dumps(config))

    def refusal(self, device: str = "cpu", *, inspect: bool = True) -> str | None:
        """Load and inspect it; return the sentence with which loading was refused, None if it loaded."""
        base = None if self.base is None else str(self.base)
        told = None
        try:
            load_pretrained_model(str(self.folder), base, "damaged", device=device, dtype="float32")
        except UserError as error:
            told = str(error)
            assert "\n" not in told and len(told) < 900, told
            assert "weights_only" not in told and "Re-running" not in told, told
        if not inspect:
            return told
        try:
            report = inspect_checkpoint(str(self.folder), base)
        except CheckpointError as error:
            assert told is not None, error
        else:
            assert told is not None or report.can_chat or not report.missing
        return told


@pytest.fixture
def damaged(checkpoints: Path, tmp_path: Path):
    return lambda name: Damaged(name, checkpoints, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), FILES)
def test_every_file_in_every_way(name, file, checkpoints, tmp_path):
    for how in damages.DAMAGES:
        one = Damaged(name, checkpoints, tmp_path / how.replace(" ", "-"))
        damages.damage_file(one.place / file, how)
        told = one.refusal()
        if told is None:
            assert file in MAY_BE_MISSING or how == "zeros" or file.endswith(".model"), how
        else:
            assert any(word in told for word in (file, str(one.place), str(one.folder))), (how, told)


VALUE_FILES = [
    ("llava-tiny-v1.5-st", "config.json"),
    ("llava-tiny-v1.5-st", "generation_config.json"),
    ("llava-tiny-v1.5-st", "tokenizer_config.json"),
    ("llava-tiny-v1.5-lora", "adapter_config.json"),
    ("llava-tiny-mpt", "config.json"),
    ("tiny-clip", "config.json"),
    ("tiny-clip", "preprocessor_config.json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), VALUE_FILES)
def test_every_value_of_a_json_file(name, file, damaged, tmp_path):
    """Names and shapes alone are loaded: no value may hang, fill the memory or end in a traceback."""
    one = damaged(name)
    content = (one.place / file).read_bytes()
    refused = 0
    for field in damages.fields_of(one.place / file):
        for value in damages.WRONG_VALUES.values():
            damages.damage_value(one.place / file, field, value)
            refused += one.refusal("meta", inspect=False) is not None
            (one.place / file).write_bytes(content)
    assert one.refusal("meta") is None
    if file == "config.json":
        assert refused > 50


# ---- what each sentence says ----


def test_a_pickle_is_refused_without_torchs_advice(damaged):
    one = damaged("llava-tiny-mpt")
    damages.damage_file(one.place / "pytorch_model.bin", "rubbish")
    assert f"{one.place / 'pytorch_model.bin'} is damaged" in str(one.refusal())


@pytest.mark.parametrize("name", ["../other.bin", "/etc/passwd", "a/b.bin", "..", "", 7])
def test_an_index_that_names_files_outside_the_folder(damaged, name):
    one = damaged("llava-tiny-v1.5")
    file = one.place / "pytorch_model.bin.index.json"
    content = json.loads(file.read_text())
    content["weight_map"]["model.norm.weight"] = name
    file.write_text(json.dumps(content))
    told = str(one.refusal())
    assert str(file) in told and "in the same folder" in told


@pytest.mark.parametrize("kind", [None, "MAGIC", 3])
def test_an_adapter_without_a_known_kind(damaged, kind):
    one = damaged("llava-tiny-v1.5-lora")
    damages.damage_value(one.place / "adapter_config.json", "peft_type", kind)
    told = str(one.refusal())
    assert "adapter_config.json has peft_type" in told and "'LORA'" in told


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        (
            "num_hidden_layers",
            10**15,
            "num_hidden_layers 1000000000000000; expected a whole number",
        ),
        ("num_attention_heads", 0, "num_attention_heads 0; expected a whole number"),
        ("num_attention_heads", 7, "num_attention_heads 7, which does not divide it"),
        ("hidden_size", -64, "hidden_size -64"),
        ("vocab_size", "many", "vocab_size 'many'"),
        ("architectures", 3, "architectures 3; expected a list of class names"),
        ("hidden_act", "swish-swash", "swish-swash"),
        ("mm_vision_tower", ["a"], "mm_vision_tower"),
        ("mm_hidden_size", None, "mm_hidden_size"),
        ("quantization_config", "4bit", "quantization_config '4bit'; expected an object"),
    ],
)
def test_a_wrong_value_is_named(damaged, field, value, told):
    one = damaged("llava-tiny-v1.5-st")
    damages.damage_value(one.place / "config.json", field, value)
    assert told in str(one.refusal("meta"))


def test_a_config_that_says_quantised_over_plain_weights(damaged):
    one = damaged("llava-tiny-v1.5-st")
    config = {"load_in_4bit": True, "quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}
    damages.damage_value(one.place / "config.json", "quantization_config", config)
    told = str(one.refusal())
    assert "quantization_config" in told and "not quantised" in told


def test_a_broken_generation_config_is_not_passed_over(damaged):
    one = damaged("llava-tiny-v1.5-st")
    damages.damage_file(one.place / "generation_config.json", "truncated")
    assert "generation_config.json cannot be read as JSON" in str(one.refusal())


def test_a_broken_processor_config_names_its_file(damaged):
    one = damaged("tiny-clip")
    damages.damage_value(one.place / "preprocessor_config.json", "size", "large")
    told = str(one.refusal())
    assert str(one.place) in told and "preprocessor_config.json" in told


def test_the_undamaged_ones_load(damaged):
    for name in BASES:
        if name != "llava-tiny-v1.6":
            assert damaged(name).refusal() is None
