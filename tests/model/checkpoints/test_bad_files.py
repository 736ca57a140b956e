"""Damaged and malicious files in a model folder: one clear sentence each, and nothing runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import folders
import pytest
import torch
from folders import refuse

from llava.model.checkpoints.files import CheckpointError, read_tensors

# ------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("llava-tiny-v1.5", "pytorch_model-00002-of-00003.bin"),
        ("llava-tiny-v1.6", "model-00002-of-00003.safetensors"),
    ],
)
def test_missing_shard(copy, name, shard):
    folder = copy(name)
    (folder / shard).unlink()
    refuse(folder, folder, shard, "lacks 1 of the 3 weight files")


@pytest.mark.parametrize("keep", [0, 5, 100, 200_000])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llava-tiny-v1.5-st", "model.safetensors"),
        ("llava-tiny-v1.6", "model-00001-of-00003.safetensors"),
        ("llava-tiny-mpt", "pytorch_model.bin"),
        ("vicuna-tiny", "pytorch_model.bin"),
    ],
)
def test_truncated_weights(copy, name, file, keep):
    folder = copy(name)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[:keep])
    refuse(folder, folder, *([file, "empty"] if keep == 0 else []))


def test_garbage_in_place_of_weights(copy):
    for name, file in (("llava-tiny-v1.5-st", "model.safetensors"), ("llava-tiny-mpt", "pytorch_model.bin")):
        folder = copy(name)
        (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 540848\n")
        refuse(folder, folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "not json", '"text"'])
def test_broken_config(copy, content):
    folder = copy("llava-tiny-v1.5")
    (folder / "config.json").write_text(content)
    refuse(folder, folder / "config.json", "JSON")


@pytest.mark.parametrize("content", ["{}", "{", '{"weight_map": []}'])
def test_broken_index(copy, content):
    folder = copy("llava-tiny-v1.5")
    (folder / "pytorch_model.bin.index.json").write_text(content)
    refuse(folder, "pytorch_model.bin.index.json")


def test_no_folder_no_model(tmp_path):
    refuse(tmp_path / "nowhere", "There is no folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path / "empty", "holds no model", "mm_projector.bin")
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "is a file")


def test_a_config_alone(copy):
    folder = copy("llava-tiny-v1.5")
    folders.drop_weights(folder)
    refuse(folder, folder, "holds no model", "model.safetensors")


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_truncated_projector_file(copy, vicuna, keep):
    folder = copy("llava-tiny-pretrain")
    file = folder / "mm_projector.bin"
    file.write_bytes(file.read_bytes()[:keep])
    refuse(folder, file, base=vicuna)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "non_lora_trainables.bin"])
def test_truncated_lora_files(copy, vicuna, file):
    folder = copy("llava-tiny-v1.5-lora")
    (folder / file).write_bytes((folder / file).read_bytes()[:500])
    refuse(folder, folder / file, base=vicuna)


# --------------------------------------------------------------------------------------------- code in files


class TouchesFile:
    """Unpickling this creates a file, as a malicious checkpoint would."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def write_malicious(file: Path, mark: Path, kind: str) -> None:
    if kind == "zip":  # today's torch format
        torch.save({"model.mm_projector.0.weight": TouchesFile(mark)}, file)
    elif kind == "legacy":
        torch.save({"weight": TouchesFile(mark)}, file, _use_new_zipfile_serialization=False)
    else:
        file.write_bytes(pickle.dumps(TouchesFile(mark)))


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_the_malicious_file_works(tmp_path, kind):
    """Without protection the mark appears: the tests below would notice."""
    write_malicious(tmp_path / "x.bin", tmp_path / "mark", kind)
    if kind == "plain":
        pickle.loads((tmp_path / "x.bin").read_bytes())
    else:
        torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llava-tiny-pretrain", "mm_projector.bin"),
        ("llava-tiny-v1.5-lora", "non_lora_trainables.bin"),
        ("llava-tiny-v1.5-lora", "adapter_model.bin"),
        ("llava-tiny-mpt", "pytorch_model.bin"),
        ("vicuna-tiny", "pytorch_model.bin"),
        ("llava-tiny-v1.5", "pytorch_model-00002-of-00003.bin"),
    ],
)
def test_pickled_code_does_not_run(copy, vicuna, tmp_path, name, file, kind):
    folder, mark = copy(name), tmp_path / "mark"
    if file == "adapter_model.bin":
        (folder / "adapter_model.safetensors").unlink()
    write_malicious(folder / file, mark, kind)
    refuse(folder, folder, base=None if name == "vicuna-tiny" else vicuna)
    assert not mark.exists()


def test_pickled_code_in_a_tower_folder_does_not_run(copy, tmp_path):
    tower, folder = copy("tiny-clip"), copy("llava-tiny-v1.5")
    folders.edit_config(folder, mm_vision_tower=str(tower))
    write_malicious(tower / "pytorch_model.bin", tmp_path / "mark", "zip")
    refuse(folder, tower)
    assert not (tmp_path / "mark").exists()


def test_reading_a_file_of_objects_says_why(tmp_path):
    write_malicious(tmp_path / "x.bin", tmp_path / "mark", "zip")
    with pytest.raises(CheckpointError, match=r"x\.bin .*objects other than tensors"):
        read_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "mark").exists()


def test_a_zip_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"x\.bin"):
        read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)], ids=["list", "numbers", "tensor"])
def test_a_file_that_is_no_dict_of_tensors(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="expected a dict of tensors"):
        read_tensors(tmp_path / "x.bin")
