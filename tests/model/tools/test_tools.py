"""Weight tools as functions and as commands: deltas, consolidate, auto_upgrade, extract, merge."""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import pytest
import torch
from recorded import RECORDED, check_close
from warming import python

from llava.model.apply_delta import apply_delta
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, load_weights, save_tensors
from llava.model.consolidate import consolidate_ckpt
from llava.model.make_delta import make_delta
from llava.model.tools import extract
from llava.model.tools.extract import extract_projector, merge_lora
from llava.model.utils import auto_upgrade

ROOT = Path(__file__).parents[3]


def load(path, base=None):
    return load_pretrained_model(str(path), base and str(base), "x", device="cpu")[1]


def without_tower(weights):
    return {name: value for name, value in weights.items() if "vision_tower" not in name}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a module's or script's program with arguments; returns its exit status and stderr."""

    def call(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        status = 0
        try:
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                from llava.utils import run_program

                run_program(importlib.import_module(program).main)
        except SystemExit as stop:
            status = stop.code or 0
        return status, capsys.readouterr().err

    return call


# ------------------------------------------------------------------------------------------------- deltas


def test_make_delta_gives_the_recorded_one(checkpoints, tmp_path):
    make_delta(str(checkpoints / "vicuna-tiny"), str(checkpoints / "llava-tiny-v0"), str(tmp_path / "d"))
    got = load_weights(tmp_path / "d")
    for name, (dtype, norm) in RECORDED["delta_norms"].items():
        assert str(got[name].dtype) == dtype
        check_close(got[name].float().norm(), norm, 1e-4, 1e-3, name)
    assert set(without_tower(got)) == set(RECORDED["delta_norms"])
    base, target = load_weights(checkpoints / "vicuna-tiny"), load_weights(checkpoints / "llava-tiny-v0")
    rows = got["model.embed_tokens.weight"]
    expected = target["model.embed_tokens.weight"].half()
    assert torch.equal(rows[:1000], expected[:1000] - base["model.embed_tokens.weight"])
    assert torch.equal(rows[1000:], expected[1000:])  # rows of new tokens are whole
    projector = "model.mm_projector.weight"
    assert torch.equal(got[projector], target[projector].half())
    assert (tmp_path / "d" / "tokenizer.model").exists()


def test_a_delta_gives_its_target_back(family, checkpoints, tmp_path):
    """All families, tower included; the reference's tool knows projectors of one layer on Llama only."""
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    target = folders.whole(family, tmp_path / "target", checkpoints, unfreeze_mm_vision_tower=True)
    make_delta(str(base), str(target), str(tmp_path / "delta"))
    delta = load_weights(tmp_path / "delta")
    name = next(name for name in delta if "layers.1" in name or "blocks.1" in name)
    assert not torch.equal(delta[name], load_weights(target)[name].half())
    apply_delta(str(base), str(tmp_path / "applied"), str(tmp_path / "delta"))
    got, want = load_weights(tmp_path / "applied"), load_weights(target)
    assert set(got) == set(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name].float(), value.float(), atol=4e-3, rtol=2e-3, msg=name)
    load(tmp_path / "applied")


def test_the_recorded_delta_gives_the_recorded_model(checkpoints, tmp_path):
    apply_delta(
        str(checkpoints / "vicuna-tiny"), str(tmp_path / "t"), str(checkpoints / "llava-tiny-v0-delta")
    )
    got, want = load_weights(tmp_path / "t"), without_tower(load_weights(checkpoints / "llava-tiny-v0"))
    for name, value in want.items():
        torch.testing.assert_close(got[name].float(), value.float(), atol=1e-2, rtol=1e-2, msg=name)
    assert load(tmp_path / "t").get_input_embeddings().weight.shape[0] == 1004


@pytest.mark.parametrize("tool", [make_delta, apply_delta])
def test_another_base_is_refused(tool, checkpoints, tmp_path):
    base = folders.text_base("llama", tmp_path / "base", checkpoints)  # 32 wide instead of 64
    v0 = "llava-tiny-v0" if tool is make_delta else "llava-tiny-v0-delta"
    paths = [str(checkpoints / v0), str(tmp_path / "out")]
    with pytest.raises(CheckpointError, match="is it the right base model"):
        tool(str(base), *(paths if tool is make_delta else reversed(paths)))
    assert not (tmp_path / "out").exists()


def test_a_base_with_fewer_layers_is_refused(checkpoints, tmp_path):
    base = Path(shutil.copytree(checkpoints / "vicuna-tiny", tmp_path / "base"))
    folders.edit_config(base, num_hidden_layers=1)
    folders.rewrite(base, lambda w: [w.pop(n) for n in list(w) if "layers.1." in n], "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the base has no model\.layers\.1"):
        apply_delta(str(base), str(tmp_path / "out"), str(checkpoints / "llava-tiny-v0-delta"))


# the documented lines: docs/ and README of the reference shorten the flags
COMMANDS = {
    "whole names": ("--base-model-path", "--target-model-path", "--delta-path"),
    "as documented": ("--base", "--target", "--delta"),
}


@pytest.mark.parametrize("names", COMMANDS)
def test_delta_commands(names, run, checkpoints, tmp_path):
    base, target, delta = COMMANDS[names]
    vicuna, v0 = checkpoints / "vicuna-tiny", checkpoints / "llava-tiny-v0"
    assert run("llava.model.make_delta", base, vicuna, target, v0, delta, tmp_path / "d")[0] == 0
    assert run("llava.model.apply_delta", base, vicuna, target, tmp_path / "t", delta, tmp_path / "d")[0] == 0
    got, want = load_weights(tmp_path / "t"), load_weights(v0)
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(got[name].float(), want[name].float(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("program", ["llava.model.make_delta", "llava.model.apply_delta"])
def test_a_missing_base_is_one_line_and_status_2(program, run, checkpoints, tmp_path):
    arguments = ["--base", tmp_path / "none", "--target", tmp_path / "t"]
    if program.endswith("make_delta"):
        arguments[3] = checkpoints / "llava-tiny-v0"
    status, stderr = run(program, *arguments, "--delta", checkpoints / "llava-tiny-v0-delta")
    assert status == 2
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(tmp_path / "none") in last
    assert "Traceback" not in stderr


# ------------------------------------------------------------------------------ consolidate, auto_upgrade


@pytest.mark.parametrize("name", ["llava-tiny-v1.5", "llava-tiny-v1.6", "llava-tiny-v0", "llava-tiny-mpt"])
def test_consolidate_keeps_every_weight(name, run, checkpoints, tmp_path):
    source = checkpoints / name
    assert run("llava.model.consolidate", "--src", source, "--dst", tmp_path / "c")[0] == 0
    got, want = load_weights(tmp_path / "c"), load_weights(source)
    if name != "llava-tiny-v1.6":  # the others' towers have their own folder
        want = without_tower(want)
    for key, value in want.items():
        if key != "lm_head.weight" or name != "llava-tiny-mpt":  # tied in MPT
            assert torch.equal(got[key], value.half()), key
    assert (tmp_path / "c" / "model.safetensors").exists()
    assert type(load(tmp_path / "c")) is type(load(source))


def first_release(checkpoints, tmp_path):
    """A folder as the first release wrote it."""
    folder = Path(shutil.copytree(checkpoints / "llava-tiny-v0", tmp_path / "old"))
    folders.edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    return folder


def answer(monkeypatch, text):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize("text", ["y\n", "Y\n", "yes\n", "  y"])
def test_upgrade_after_a_yes(checkpoints, tmp_path, monkeypatch, text):
    folder = first_release(checkpoints, tmp_path)
    before = folders.read_config(folder)
    answer(monkeypatch, text)
    auto_upgrade(str(folder))
    after = folders.read_config(folder)
    assert (after["model_type"], after["architectures"]) == ("llava_llama", ["LlavaLlamaForCausalLM"])
    changed = {"model_type", "architectures"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert sorted(one.name for one in folder.iterdir() if "partial" in one.name) == []
    auto_upgrade(str(folder))  # nothing to ask any more


@pytest.mark.parametrize("text", ["n\n", "\n", "", "maybe\n"])
def test_no_upgrade_after_anything_else(checkpoints, tmp_path, monkeypatch, text):
    folder = first_release(checkpoints, tmp_path)
    before = (folder / "config.json").read_text()
    answer(monkeypatch, text)
    with pytest.raises(SystemExit) as stop:
        auto_upgrade(str(folder))
    assert stop.value.code == 1
    assert (folder / "config.json").read_text() == before


@pytest.mark.parametrize("name", ["vicuna-tiny", "llava-tiny-v1.5", "tiny-clip"])
def test_other_folders_are_not_asked_about(checkpoints, name, monkeypatch):
    answer(monkeypatch, "y\n")
    before = (checkpoints / name / "config.json").read_text()
    auto_upgrade(str(checkpoints / name))
    assert (checkpoints / name / "config.json").read_text() == before


def test_consolidate_asks_first(checkpoints, tmp_path, monkeypatch):
    folder = first_release(checkpoints, tmp_path)
    answer(monkeypatch, "y\n")
    consolidate_ckpt(str(folder), str(tmp_path / "c"))
    assert folders.read_config(tmp_path / "c")["model_type"] == "llava_llama"


# --------------------------------------------------------------------------------------- extract and merge


@pytest.mark.parametrize(
    "name", ["llava-tiny-v1.5", "llava-tiny-v1.5-st", "llava-tiny-v1.6", "llava-tiny-mpt"]
)
def test_extracted_projector(name, run, checkpoints, tmp_path):
    file = tmp_path / "new" / "mm_projector.bin"
    script = "scripts/extract_mm_projector.py"
    assert run(script, "--model-path", checkpoints / name, "--output", file)[0] == 0
    wanted = ("mm_projector.", "image_newline")
    stored = load_weights(checkpoints / name)
    expected = {key: value for key, value in stored.items() if any(part in key for part in wanted)}
    got = load_weights(file)
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_extracted_projector_serves_as_stage_one(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints / "llava-tiny-pretrain", tmp_path / "p"))
    extract_projector(str(checkpoints / "llava-tiny-v1.5"), str(folder / "mm_projector.bin"))
    model = load(folder, checkpoints / "vicuna-tiny")
    expected = load_weights(checkpoints / "llava-tiny-v1.5")["model.mm_projector.0.weight"]
    assert torch.equal(model.model.mm_projector[0].weight, expected)


def test_a_text_model_has_no_projector(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="holds no projector"):
        extract_projector(str(checkpoints / "vicuna-tiny"), str(tmp_path / "p.bin"))
    assert not (tmp_path / "p.bin").exists()


def test_merged_lora_loads_alone(family, checkpoints, tmp_path):
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    folders.lora(family, tmp_path / "llava-x-lora", base, checkpoints)
    merge_lora(str(tmp_path / "llava-x-lora"), str(base), str(tmp_path / "merged"), "llava-x-lora")
    merged, together = load(tmp_path / "merged"), load(tmp_path / "llava-x-lora", base)
    assert type(merged) is type(together)
    other = together.state_dict()
    for name, value in merged.state_dict().items():
        assert torch.equal(value, other[name].to(value.dtype)), name


def test_merge_command(run, checkpoints, tmp_path):
    """The line of docs/LoRA.md; the weights are those the reference merges to."""
    lora, out = checkpoints / "llava-tiny-v1.5-lora", tmp_path / "llava-merged"
    status, _ = run(
        "scripts/merge_lora_weights.py",
        *("--model-path", lora, "--model-base", checkpoints / "vicuna-tiny", "--save-model-path", out),
    )
    assert status == 0
    got = load_weights(out)
    for name, norm in RECORDED["merged_norms"].items():
        check_close(got[name].float().norm(), norm, 1e-4, 2e-3, name)
    assert set(without_tower(got)) == set(RECORDED["merged_norms"])
    assert (out / "tokenizer.model").exists()
    assert load(out).config.model_type == "llava_llama"


def test_a_broken_adapter_leaves_the_target_alone(run, checkpoints, tmp_path):
    lora = Path(shutil.copytree(checkpoints / "llava-tiny-v1.5-lora", tmp_path / "llava-lora"))
    weights = load_weights(lora / "adapter_model.safetensors")
    weights.popitem()
    save_tensors(weights, lora / "adapter_model.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    status, stderr = run(
        "scripts/merge_lora_weights.py",
        *("--model-path", lora, "--model-base", checkpoints / "vicuna-tiny"),
        *("--save-model-path", tmp_path / "out"),
    )
    assert status == 2
    assert "lacks 1 weight" in stderr
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.slow
def test_commands_in_their_own_process(checkpoints, tmp_path):
    """`python -m llava.model.apply_delta --base ... --target ... --delta ...`, from another folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    base = ["--base", str(checkpoints / "vicuna-tiny"), "--target", str(tmp_path / "t")]
    command = [python(), "-m", "llava.model.apply_delta", *base]
    good = [*command, "--delta", str(checkpoints / "llava-tiny-v0-delta")]
    done = subprocess.run(good, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t" / "model.safetensors").exists()
    bad = [*command, "--delta", str(tmp_path / "nothing")]
    done = subprocess.run(bad, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "nothing") in done.stderr


def test_the_cost_of_rounding_is_said():
    bfloat16, float16, float32 = torch.bfloat16, torch.float16, torch.float32
    told = str(extract.rounding_cost({float32, float16}, float16))
    assert "stored as float32 are merged to float16" in told and "4.9e-04" in told and "infinite" in told
    assert "--dtype float32" in told
    assert "digits are kept" in str(extract.rounding_cost({bfloat16}, float16))
    assert "3.9e-03" in str(extract.rounding_cost({float16}, bfloat16))
    assert extract.rounding_cost({float16, bfloat16}, float32) is None
    assert extract.rounding_cost({float16}, float16) is None


def test_merging_says_what_it_costs(checkpoints, tmp_path, caplog):
    name = "llava-tiny-v1.5-lora"
    with caplog.at_level("WARNING", logger="llava.model.tools.extract"):
        for dtype in ("float16", "float32"):
            folder = str(tmp_path / dtype)
            extract.merge_lora(
                str(checkpoints / name), str(checkpoints / "vicuna-tiny"), folder, name, dtype=dtype
            )
    stored = extract.stored_dtypes(str(checkpoints / name), str(checkpoints / "vicuna-tiny"))
    assert stored and ("merged to float16" in caplog.text) == (stored != {torch.float16})
    assert "merged to float32" not in caplog.text
