"""python -m llava.model.inspect: what a checkpoint is, needs and lacks, told without reading its weights."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import pytest
import tiny
import torch
from folders import refuse

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, load_weights, save_tensors
from llava.model.tools.inspection import inspect_checkpoint

ROOT = Path(__file__).parents[3]


def look(path, base=None):
    return inspect_checkpoint(str(path), base and str(base))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the program; returns its exit status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("llava.model.inspect", run_name="__main__")
        out = capsys.readouterr()
        return stop.value.code, out.out, out.err

    return call


# -------------------------------------------------------------------------------------- what it is and needs

EXPECTED = {
    "llava-tiny-v1.5": ("full", "llama", "v1.5", "llava_v1"),
    "llava-tiny-v1.5-st": ("full", "llama", "v1.5", "llava_v1"),
    "llava-tiny-v1.6": ("full", "llama", "v1.6", "llava_v1"),
    "llava-tiny-v1.6-mistral": ("full", "mistral", "v1.6", "mistral_instruct"),
    "llava-tiny-mpt": ("full", "mpt", "v1.5", "mpt"),
    "llava-tiny-v0": ("full", "llama", "v0", "llava_v0"),
    "llava-tiny-pretrain": ("projector", "llama", "v1.5", "llava_v1"),
    "llava-tiny-v1.5-lora": ("lora", "llama", "v1.5", "llava_v1"),
    "vicuna-tiny": ("text", "llama", None, "llava_v0"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_recorded_checkpoints(name, checkpoints, vicuna):
    folder = checkpoints / name
    base = vicuna if name.endswith(("pretrain", "lora")) else None
    report = look(folder, base)
    assert (report.kind, report.family, report.style, report.template) == EXPECTED[name]
    assert report.can_chat, report.problems
    assert not (report.missing or report.unexpected or report.misshapen)
    tokenizer, model, _, context = load_pretrained_model(str(folder), base and str(base), name, device="cpu")
    assert (report.context_length, report.tokens) == (context, len(tokenizer))
    model.state_dict()  # with layers of the tower that are read when something asks for them
    parts = {"projector": "mm_projector", "vision tower": "vision_tower"}
    for part, mark in parts.items():
        count = sum(value.numel() for key, value in model.named_parameters() if mark in key)
        newline = 64 if part == "projector" and report.style == "v1.6" else 0
        assert report.parameters.get(part, 0) == count + newline
    rest = sum(report.parameters.values()) - report.parameters.get("adapter", 0)
    assert rest == sum(value.numel() for value in model.parameters())
    assert (report.base is not None) == (base is not None)


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("llava-tiny-v1.6", {"float16"}),
        ("llava-tiny-v1.6-mistral", {"bfloat16"}),
        ("llava-tiny-v0", {"float32", "float16"}),
        ("llava-tiny-v1.5-lora", {"float32"}),
    ],
)
def test_dtypes_and_bytes_on_disk(name, dtypes, checkpoints):
    report = look(checkpoints / name)
    assert set(report.dtypes) == dtypes
    patterns = ("*.safetensors", "*.bin")
    files = {file for pattern in patterns for file in (checkpoints / name).glob(pattern)}
    assert report.bytes == sum(file.stat().st_size for file in files)


def test_where_the_tower_is(copy, checkpoints, tmp_path):
    assert "copy in the checkpoint is not used" in look(checkpoints / "llava-tiny-v1.5").tower.place
    assert "in the checkpoint (tuned)" in look(checkpoints / "llava-tiny-v1.6").tower.place
    folder = copy("llava-tiny-v1.5")
    folders.rewrite(folder, without_tower, "model.safetensors")
    assert look(folder).tower.place == "local folder"
    folders.edit_config(folder, mm_vision_tower="somebody/tower")
    report = look(folder)
    assert not report.tower.present
    assert not report.can_chat
    assert "not in the cache of the hub" in report.problems[0]
    folders.edit_config(folder, mm_vision_tower="openai/clip-vit-large-patch14-336")  # whose width is known
    assert (
        "features of the vision tower openai/clip-vit-large-patch14-336 are 1024 wide"
        in look(folder).problems[0]
    )


def without_tower(weights):
    for name in [name for name in weights if "vision_tower" in name]:
        del weights[name]


def test_other_faults_are_found_although_the_tower_is_not_here(copy):
    folder = copy("llava-tiny-v1.5")
    folders.edit_config(folder, mm_vision_tower="openai/clip-vit-large-patch14-336")
    folders.rewrite(folder, lambda weights: weights.pop("model.norm.weight"), "model.safetensors")
    report = look(folder)
    assert report.missing == ["model.norm.weight"]
    assert len(report.problems) == 2
    assert report.tokens == 1000


def test_a_base_that_is_not_here(checkpoints, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("llava-tiny-pretrain", "llava-tiny-v1.5-lora"):
        report = look(checkpoints / name)
        assert not report.can_chat
        assert (report.base.name, report.base.present) == ("vicuna-tiny", False)
        assert "model_base" in report.problems[0]
        assert report.parameters["projector"] == 6272


def cached(root, name, source):
    """Put a folder into the cache of the hub, as a download would."""
    repository = root / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return shutil.copytree(source, repository / "snapshots" / ("0" * 40))


def test_names_of_the_hub(checkpoints, tmp_path, monkeypatch):
    """Model and tower by their names; both, or only the model, are in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = Path(cached(tmp_path, "liuhaotian/llava-tiny", checkpoints / "llava-tiny-v1.6"))
    folders.edit_config(folder, mm_vision_tower="openai/clip-tiny")
    report = look("liuhaotian/llava-tiny")
    assert not report.can_chat
    assert "'openai/clip-tiny'" in report.problems[0]
    assert not report.tower.present
    assert report.bytes > 500_000
    cached(tmp_path, "openai/clip-tiny", checkpoints / "tiny-clip")
    report = look("liuhaotian/llava-tiny")
    assert report.can_chat, report.problems
    assert "in the cache of the hub" in report.tower.place


def test_nothing_is_downloaded(checkpoints, monkeypatch):
    """With the hub switched on, a name that is not in the cache is still not asked for."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the hub was called"))
    with pytest.raises(CheckpointError, match="not in the cache"):
        look("nobody/no-such-model")
    assert constants.HF_HUB_OFFLINE is False


# --------------------------------------------------------------------------------------------- what is wrong


def test_all_faults_are_listed(copy):
    def spoil(weights):
        del weights["model.norm.weight"], weights["model.mm_projector.0.bias"]
        weights["model.unknown.weight"] = torch.zeros(2)
        weights["model.mm_projector.0.weight"] = torch.zeros(64, 48)

    report = look(folders.rewrite(copy("llava-tiny-v1.5-st"), spoil, "model.safetensors"))
    assert report.missing == ["model.mm_projector.0.bias", "model.norm.weight"]
    assert report.unexpected == ["model.unknown.weight"]
    assert report.misshapen == [("model.mm_projector.0.weight", (64, 48), (64, 32))]
    assert not report.can_chat


def test_the_problem_is_the_loaders_sentence(copy):
    folder = copy("llava-tiny-v1.5-st")
    folders.rewrite(folder, lambda weights: weights.pop("lm_head.weight"), "model.safetensors")
    refuse(folder, look(folder).problems[0])


def test_a_missing_shard_and_a_missing_tokenizer(copy):
    folder = copy("llava-tiny-v1.5")
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    (folder / "tokenizer.model").unlink()
    report = look(folder)
    assert [word in " ".join(report.problems) for word in ("pytorch_model-00002", "tokenizer")] == [
        True,
        True,
    ]


def test_an_adapter_that_lacks_a_weight(copy, vicuna):
    folder = copy("llava-tiny-v1.5-lora")
    weights = load_weights(folder / "adapter_model.safetensors")
    weights.popitem()
    save_tensors(weights, folder / "adapter_model.safetensors")
    assert "lacks 1 weight" in look(folder, vicuna).problems[0]


def test_a_delta_is_recognised(checkpoints):
    report = look(checkpoints / "llava-tiny-v0-delta")
    assert not report.can_chat
    assert "looks like a delta" in report.problems[0]
    assert "llava.model.apply_delta" in report.problems[0]


def test_tokens_and_rows_that_differ(copy):
    report = look(copy("llava-tiny-mpt"))
    assert (report.tokens, report.rows) == (600, 608)
    assert "rows beyond are cut off" in report.notes[0]
    folder = copy("llava-tiny-v1.5-st")
    folders.edit_config(folder, vocab_size=990)

    def cut(weights):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights[name][:990].clone()

    report = look(folders.rewrite(folder, cut, "model.safetensors"))
    assert "the last 10 tokens get the mean of the other rows" in report.notes[0]


def test_vicunas_generation_config(copy):
    folder = copy("llava-tiny-v1.5-st")
    assert look(folder).generation_config == "consistent"
    wrong = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(wrong))
    report = look(folder)
    assert report.generation_config == "temperature 0.9 and top_p 0.6 but do_sample=False"
    assert report.can_chat


def test_quantised_weights(copy):
    folder = copy("llava-tiny-v1.5-st")
    folders.edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    report = look(folder)
    assert report.quantization == "bitsandbytes, 4 bit"
    assert "not compared" in report.notes[0]
    folders.edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    report = look(folder)
    assert report.quantization == "gptq, 4 bit"
    assert "only bitsandbytes" in report.problems[0]


def test_every_family(family, checkpoints, tmp_path):
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    folders.whole(family, tmp_path / "whole", checkpoints, unfreeze_mm_vision_tower=True)
    folders.projector(family, tmp_path / "p", checkpoints, mm_patch_merge_type="spatial_unpad")
    folders.lora(family, tmp_path / "l", base, checkpoints)
    reports = [look(tmp_path / "whole"), look(tmp_path / "p", base), look(tmp_path / "l", base), look(base)]
    assert [(one.family, one.can_chat) for one in reports] == [(family, True)] * 4
    assert [one.style for one in reports] == ["v1.5", "v1.6", "v1.5", None]


def test_a_large_model_is_not_read(checkpoints, tmp_path):
    """8 GB of weights in a file without blocks on the disk."""
    wide = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    fields = {**folders.base_fields("llama"), **wide, "num_key_value_heads": 32, "num_hidden_layers": 20}
    config = tiny.llava_config("llama", checkpoints / "tiny-clip", **fields)
    with torch.device("meta"):
        model = tiny.llava_class("llama")(config)
    header, at = {}, 0
    for name, value in model.state_dict().items():
        end = at + 2 * value.numel()
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
    config.save_pretrained(tmp_path)
    folders.add_tokenizer(tmp_path, "llama", checkpoints)
    report = look(tmp_path)
    assert report.bytes > 8e9
    assert report.parameters["llm"] > 4e9
    assert len(report.problems) == 1 and "delta" in report.problems[0]  # its last norm is zeros


# ----------------------------------------------------------------------------------------------- the program


def test_exit_status_and_lines(run, checkpoints, copy, tmp_path):
    status, out, _ = run(checkpoints / "llava-tiny-v1.6")
    assert status == 0
    for part in ("a whole LLaVA on llama, v1.6 style", "llava_v1", "spatial_unpad", "chat:", "yes"):
        assert part in out
    folder = copy("llava-tiny-v1.5-st")
    folders.rewrite(folder, lambda weights: weights.pop("model.norm.weight"), "model.safetensors")
    status, out, _ = run(folder)
    assert status == 1
    assert "1: model.norm.weight" in out
    for bad in (tmp_path / "none", checkpoints / "tiny-clip", folder / "config.json"):
        status, out, err = run(bad)
        assert (status, out) == (2, "")
        assert err.startswith("error: ") and str(bad) in err and "Traceback" not in err


def test_json(run, checkpoints, vicuna):
    status, out, _ = run(checkpoints / "llava-tiny-v1.5-lora", "--model-base", vicuna, "--json")
    content = json.loads(out)
    assert status == 0
    assert content["can_chat"] is True
    assert content["base"] == {"name": str(vicuna), "present": True, "place": "local folder, given"}
    assert content["parameters"]["adapter"] > 0


@pytest.mark.slow
def test_its_name_hides_nothing_of_python(tmp_path):
    """Programs beside it that are run by their file find Python's own module `inspect`."""
    command = [sys.executable, str(ROOT / "llava/model/apply_delta.py"), "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_module_is_not_a_regular_package():
    assert not (ROOT / "llava" / "model" / "inspect" / "__init__.py").exists()
    assert not (ROOT / "llava" / "model" / "inspect.py").exists()
