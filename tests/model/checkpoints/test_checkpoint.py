"""Files of a checkpoint: reading, writing whole or not at all, key names."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
import torch

import llava
from llava.model.checkpoints import files
from llava.model.checkpoints.files import (
    CheckpointError,
    find_file,
    load_weights,
    named_part,
    part_of,
    read_tensors,
    save_tensors,
    strip_adapter_prefix,
    weight_files,
)
from llava.model.checkpoints.writing import whole_folder

NAMES = ("x.bin", "x.safetensors")


def weights(value=1.0):
    return {"a.weight": torch.full((2, 3), value), "b": torch.arange(4).to(torch.bfloat16)}


def same(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        assert torch.equal(got[name], value)
        assert got[name].dtype == value.dtype


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read(tmp_path, name):
    file = tmp_path / "new" / name
    save_tensors(weights(), file)
    same(read_tensors(file), weights())
    assert [one.name for one in file.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_views_are_written_as_they_look(tmp_path, name):
    big = torch.arange(6.0).view(2, 3)
    save_tensors({"t": big.T}, tmp_path / name)
    assert torch.equal(read_tensors(tmp_path / name)["t"], big.T)


@pytest.mark.parametrize("name", NAMES)
def test_only_some_tensors(tmp_path, name):
    save_tensors(weights(), tmp_path / name)
    assert set(read_tensors(tmp_path / name, only=["weight"])) == {"a.weight"}


def test_a_picked_tensor_outlives_its_file(tmp_path):
    file = tmp_path / "x.bin"
    save_tensors(weights(), file)
    picked = read_tensors(file, only=["a."])
    file.write_bytes(b"\0" * file.stat().st_size)
    same(picked, {"a.weight": weights()["a.weight"]})


def test_files_from_before_torch_1_6(tmp_path):
    torch.save(weights(), tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    same(read_tensors(tmp_path / "x.bin"), weights())
    same(read_tensors(tmp_path / "x.bin", only=["a", "b"]), weights())


@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, name, monkeypatch):
    file = tmp_path / name
    save_tensors(weights(1.0), file)

    def fail(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_tensors(weights(2.0), file)
    same(read_tensors(file), weights(1.0))
    assert [one.name for one in tmp_path.iterdir()] == [name]


def content(folder):
    return {str(one.relative_to(folder)): one.read_text() for one in folder.rglob("*") if one.is_file()}


@pytest.mark.parametrize("existing", [True, False])
def test_a_folder_appears_whole(tmp_path, existing):
    target = tmp_path / "out" / "model"
    if existing:
        target.mkdir(parents=True)
        (target / "old").write_text("old")
        (target / "kept").write_text("kept")
    with whole_folder(target) as scratch:
        (scratch / "old").write_text("new")
        (scratch / "more").write_text("more")
        before = content(target) if existing else None
        assert (content(target) if target.exists() else None) == before
    expected = {"old": "new", "more": "more"} | ({"kept": "kept"} if existing else {})
    assert content(target) == expected
    assert [one.name for one in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [OSError("no"), KeyError("bug"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path, existing, error):
    target = tmp_path / "model"
    if existing:
        target.mkdir()
        (target / "old").write_text("old")
    expected = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), whole_folder(target) as scratch:
        (scratch / "old").write_text("new")
        raise error
    assert (content(target) if existing else None) == ({"old": "old"} if existing else None)
    assert [one.name for one in tmp_path.iterdir()] == (["model"] if existing else [])


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "model").write_text("")
    with (
        pytest.raises(CheckpointError, match="is a file; expected a folder"),
        whole_folder(tmp_path / "model"),
    ):
        pass


def test_weights_of_every_layout(checkpoints):
    one = load_weights(checkpoints / "llava-tiny-v1.5-st")
    shards = load_weights(checkpoints / "llava-tiny-v1.5")
    same(shards, one)
    assert len(weight_files(checkpoints / "llava-tiny-v1.5")) == 3
    assert weight_files(checkpoints / "llava-tiny-pretrain") == []
    with pytest.raises(CheckpointError, match=r"holds no weights; looked for model\.safetensors"):
        load_weights(checkpoints / "llava-tiny-pretrain")


def test_safetensors_win_over_bin_as_in_transformers(tmp_path):
    save_tensors(weights(1.0), tmp_path / "pytorch_model.bin")
    save_tensors(weights(2.0), tmp_path / "model.safetensors")
    same(load_weights(tmp_path), weights(2.0))


@pytest.mark.parametrize("tail", [b"", b"\0" * 9])
def test_a_safetensors_of_the_wrong_length(tmp_path, tail):
    file = tmp_path / "model.safetensors"
    save_tensors(weights(), file)
    data = file.read_bytes()
    file.write_bytes(data + tail if tail else data[:-1])
    with pytest.raises(CheckpointError, match=f"{len(data) + (9 if tail else -1)} bytes.*{len(data)}"):
        read_tensors(file)


@pytest.mark.parametrize("start", [b"\xff" * 8, struct.pack("<Q", 4) + b"abcd", struct.pack("<Q", 2) + b"[]"])
def test_a_safetensors_with_a_broken_header(tmp_path, start):
    (tmp_path / "model.safetensors").write_bytes(start)
    with pytest.raises(CheckpointError, match="no safetensors header"):
        read_tensors(tmp_path / "model.safetensors")


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=f"There is no file {tmp_path}"):
        read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize("path", ["/no/such/folder", "./here", "~/models/x", "plain-name", "a/b/c", "a\\b"])
def test_what_cannot_be_a_hub_name_is_never_looked_up_there(path, monkeypatch):
    monkeypatch.setattr(files, "_hub_file", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="There is no folder"):
        find_file(path, "config.json")


def test_a_hub_name_that_is_not_cached():
    """Offline (tests/conftest.py), transformers answers as if the repository had no such file."""
    with pytest.raises(CheckpointError, match="'owner/no-such-model'.*not in the cache.*config.json"):
        find_file("owner/no-such-model", "config.json")


def test_a_cached_repository_has_some_files_and_lacks_others(tmp_path, monkeypatch):
    repository = tmp_path / "models--owner--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_file("owner/model", "config.json") == snapshot / "config.json"
    assert find_file("owner/model", "mm_projector.bin") is None


# -------------------------------------------------------------------------------------------- key names


def test_names_relative_to_a_part():
    named = {"model.mm_projector.0.weight": 1, "model.layers.0.weight": 2, "mm_projector.2.bias": 3}
    assert part_of(named, "mm_projector") == {"0.weight": 1, "2.bias": 3}


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("base_model.model.model.mm_projector.0.weight", "model.mm_projector.0.weight"),
        ("base_model.model.transformer.mm_projector.0.weight", "transformer.mm_projector.0.weight"),
        ("base_model.model.lm_head.weight", "lm_head.weight"),
        ("base_model.model.mm_projector.0.weight", "model.mm_projector.0.weight"),
        ("model.mm_projector.0.weight", "model.mm_projector.0.weight"),
    ],
)
def test_names_from_inside_the_adapter(stored, name):
    assert list(strip_adapter_prefix({stored: torch.zeros(1)})) == [name]


def test_named_part_keeps_order_and_values():
    named = [("a.mm_projector.w", 1), ("b", 2), ("embed_tokens.w", 3)]
    assert list(named_part(iter(named), ["mm_projector", "embed_tokens"])) == [named[0], named[2]]


def test_nothing_else_in_the_package_unpickles():
    room = Path(llava.__file__).parent
    pattern = re.compile(r"\btorch\.load\(|\bpickle\.loads?\(|weights_only=False")
    found = {str(file.relative_to(room)) for file in room.rglob("*.py") if pattern.search(file.read_text())}
    assert found == {os.path.join("model", "checkpoints", "files.py")}
    loads = re.findall(r"torch\.load\([^)]*\)", (room / "model" / "checkpoints" / "files.py").read_text())
    assert loads
    assert all("weights_only=True" in call for call in loads)
