"""Damage in a checkpoint is noticed before a run is resumed from it: each file, in each way."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from llava.model.checkpoints.checksums import INDEX_FILE, checksum, damaged_files
from llava.model.checkpoints.files import CheckpointError
from llava.train.checkpointing.folders import commit, find_checkpoints, staging_folder
from llava.train.checkpointing.resume import choose_checkpoint

FILES = {
    "model.safetensors": b"\x08weights" * 40,
    "config.json": b"{}",
    "trainer_state.json": b'{"global_step": 1}',
    "optimizer.pt": b"optimizer" * 9,
    "scheduler.pt": b"scheduler" * 9,
    "rng_state.pth": b"random" * 9,
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


def _resume(out: Path, wanted: str = "auto") -> Path | None:
    return choose_checkpoint(
        argparse.Namespace(
            resume=wanted,
            resume_from_checkpoint=None,
            overwrite_output_dir=False,
            output_dir=str(out),
            should_save=True,
            dry_run=False,
        )
    )


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
    import shutil

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
