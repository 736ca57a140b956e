"""Damage in a checkpoint is noticed before a run is resumed from it: each file, in each way."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from llava.model.checkpoints.checksums import INDEX_FILE, checksum, damaged_files
from llava.model.checkpoints.files import CheckpointError
from llava.train.checkpointing.folders import commit, find_checkpoints, staging_folder
from llava.train.checkpointing.resume import choose_checkpoint


def _torch_file(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


FILES = {
    "model.safetensors": safetensors.torch.save({"weight": torch.arange(99.0)}),
    "config.json": b"{}",
    "trainer_state.json": b'{"global_step": 1}',
    "optimizer.pt": _torch_file("optimizer" * 9),
    "scheduler.pt": _torch_file("scheduler" * 9),
    "rng_state.pth": _torch_file("random" * 9),
    "run_memory_0.json": b'{"epoch": 0}',
    "run_manifest.json": b"{}",
}
DAMAGE = ("missing", "empty", "truncated", "rubbish")


def _write(out: Path, step: int) -> Path:
    target = out / f"checkpoint-{step}"
    staged = staging_folder(target) / target.name
    staged.mkdir(parents=True)
    for name, content in FILES.items():
        (staged / name).write_bytes(content)
    commit(staged, target)
    return target


def _damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        new = {"empty": b"", "truncated": content[:-1], "rubbish": bytes(b ^ 0xFF for b in content)}[how]
        file.write_bytes(new)


def _resume(out: Path, wanted: str = "auto", **more: object) -> Path | None:
    given: dict[str, object] = {
        "resume": wanted,
        "resume_from_checkpoint": None,
        "overwrite_output_dir": False,
        "output_dir": str(out),
        "should_save": True,
        "world_size": 1,
        "fsdp": "",
    }
    return choose_checkpoint(argparse.Namespace(**{**given, **more}))


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_before_resuming(name: str, how: str, tmp_path: Path) -> None:
    target = _write(tmp_path, 2)
    assert _resume(tmp_path) == target
    _damage(target / name, how)
    with pytest.raises(CheckpointError) as caught:
        _resume(tmp_path, str(target))
    text = str(caught.value)
    assert str(target) in text and "\n" not in text
    assert name in text or (name, how) == ("trainer_state.json", "missing")


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "rng_state.pth", "optimizer.pt"])
def test_an_earlier_checkpoint_takes_the_place_of_a_damaged_one(
    name: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = _write(tmp_path, 1), _write(tmp_path, 2)
    _damage(second / name, how)
    assert _resume(tmp_path) == first
    assert name in caplog.text and "it is not used" in caplog.text


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    target = _write(tmp_path, 1)
    file = target / "model.safetensors"
    before, content = checksum(file), bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    message = f"model.safetensors is damaged: its checksum is {checksum(file)}, {before} was written"
    assert damaged_files(target) == [message]


def test_processes_share_the_files_and_together_see_all(tmp_path: Path) -> None:
    target = _write(tmp_path, 1)
    for name in FILES:
        _damage(target / name, "rubbish")
    parts = [damaged_files(target, part=part, parts=3) for part in range(3)]
    assert all(parts) and sorted(sum(parts, [])) == sorted(damaged_files(target))
    assert len(damaged_files(target)) == len(FILES)


def test_a_list_of_an_older_version_has_no_checksums_and_resumes(tmp_path: Path) -> None:
    target = _write(tmp_path, 1)
    content = json.loads((target / INDEX_FILE).read_text())
    del content["crc32"]
    (target / INDEX_FILE).write_text(json.dumps(content))
    assert _resume(tmp_path) == target
    (target / INDEX_FILE).unlink()
    assert _resume(tmp_path) == target


# ---- without checksums: older versions, transformers' own, the reference's ----


@pytest.mark.parametrize("how", [*DAMAGE, "cut in half"])
@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("run_", "config"))])
def test_damage_without_checksums_is_named(
    name: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        (_write(tmp_path, step) / INDEX_FILE).unlink()
    second = tmp_path / "checkpoint-2"
    if how == "cut in half":
        content = (second / name).read_bytes()
        (second / name).write_bytes(content[: len(content) // 2])
    else:
        _damage(second / name, how)
    with pytest.raises(CheckpointError) as caught:
        _resume(tmp_path, str(second))
    text = str(caught.value)
    lacking = {
        "model.safetensors": "no weights",
        "rng_state.pth": "state of the random numbers",
        "optimizer.pt": "state of the optimizer",
    }
    assert "\n" not in text and (lacking.get(name, name) if how == "missing" else name) in text
    assert _resume(tmp_path) == tmp_path / "checkpoint-1"


ZERO_2 = [
    "mp_rank_00_model_states.pt",
    *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)),
]
ZERO_3 = [name for rank in (0, 1) for name in (
    f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
)]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    ("stage", "names", "damaged"),
    [(stage, names, one) for stage, names in ((2, ZERO_2), (3, ZERO_3)) for one in (*names, "latest")],
)
def test_damaged_shards_of_deepspeed_are_named(
    stage: int, names: list[str], damaged: str, how: str, tmp_path: Path
) -> None:
    target = _write(tmp_path, 2)
    (target / INDEX_FILE).unlink()
    for name in ("optimizer.pt", "scheduler.pt", "run_manifest.json"):
        (target / name).unlink()
    shards = target / "global_step2"
    shards.mkdir()
    for name in names:
        (shards / name).write_bytes(_torch_file({"step": 2}))
    (target / "latest").write_text("global_step2")
    zero = argparse.Namespace(get_value=lambda key, default: stage)
    assert _resume(tmp_path, world_size=2, hf_deepspeed_config=zero) == target
    _damage(target / "latest" if damaged == "latest" else shards / damaged, how)
    with pytest.raises(CheckpointError) as caught:
        _resume(tmp_path, str(target), world_size=2, hf_deepspeed_config=zero)
    text = str(caught.value)
    kind = damaged.partition("mp_rank_00_")[2]
    assert "\n" not in text
    assert (
        damaged
        if how != "missing" or damaged == "latest"
        else f"of {len([n for n in names if kind in n])} *{kind}"
    ) in text


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"global_step": "two"}'])
def test_a_state_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    target = _write(tmp_path, 2)
    (target / INDEX_FILE).unlink()
    (target / "trainer_state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json is not the state of a training"):
        _resume(tmp_path, str(target))


def test_files_of_torch_before_1_6_are_taken(tmp_path: Path) -> None:
    target = _write(tmp_path, 2)
    (target / INDEX_FILE).unlink()
    torch.save({"lr": 1}, target / "scheduler.pt", _use_new_zipfile_serialization=False)
    assert _resume(tmp_path) == target


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"files": 3}', '{"files": {}, "crc32": 5}'])
def test_a_damaged_list_is_named(content: str, tmp_path: Path) -> None:
    target = _write(tmp_path, 1)
    (target / INDEX_FILE).write_text(content)
    assert [one.reason for one in find_checkpoints(tmp_path)] == [f"{INDEX_FILE} cannot be read"]
    assert _resume(tmp_path) is None


def test_inspect_verifies_on_demand(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    from llava.model.checkpoints.checksums import list_files

    main = importlib.import_module("llava.model.inspect.__main__").main
    folder = tmp_path / "llava-tiny"
    shutil.copytree(checkpoints / "llava-tiny-v1.5", folder)

    def inspect() -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", ["inspect", str(folder), "--verify"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    assert "nothing could be verified" in inspect()[1]
    list_files(folder)
    assert "the checksums of all" in inspect()[1]
    file = next(folder.glob("*.safetensors"), None) or next(folder.glob("*.bin"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, text = inspect()
    assert code == 1 and f"{file.name} is damaged" in text
