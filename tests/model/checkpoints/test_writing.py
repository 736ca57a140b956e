"""Folders appear whole or not at all: crashes, full disks, folders that exist, tools that are interrupted."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import folders
import pytest
import torch
from warming import python

from llava.model.apply_delta import apply_delta
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import loading
from llava.model.checkpoints.files import CheckpointError, load_weights, save_tensors
from llava.model.checkpoints.writing import whole_folder, write_failure
from llava.model.consolidate import consolidate_ckpt
from llava.model.make_delta import make_delta
from llava.model.tools.extract import extract_projector, merge_lora
from llava.model.tools.inspection import inspect_checkpoint
from llava.utils import run_program

ROOT = Path(__file__).parents[3]


def content(folder):
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@contextlib.contextmanager
def full_disk():
    """Let no file of this process grow beyond 50 KB, as on a disk that is full there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


# ---------------------------------------------------------------------------------------------- every tool


def tool(name, checkpoints, target):
    """Run a tool that writes to `target`."""
    names = {key: str(checkpoints / key) for key in ("vicuna-tiny", "llava-tiny-v0", "llava-tiny-v1.5-lora")}
    vicuna, v0, lora = names.values()
    calls = {
        "merge": lambda: merge_lora(lora, vicuna, str(target), "x-lora"),
        "make": lambda: make_delta(vicuna, v0, str(target)),
        "apply": lambda: apply_delta(vicuna, str(target), v0 + "-delta"),
        "consolidate": lambda: consolidate_ckpt(v0, str(target)),
    }
    calls[name]()


TOOLS = ("merge", "make", "apply", "consolidate")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("name", TOOLS)
def test_a_full_disk_leaves_what_was_there(name, existing, checkpoints, tmp_path):
    target = tmp_path / "out"
    if existing:
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"old")
    before = content(tmp_path)
    message = "could not be written: .*as it was before"
    with full_disk(), pytest.raises(CheckpointError, match=message) as caught:
        tool(name, checkpoints, target)
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before
    assert [one.name for one in tmp_path.iterdir()] == (["out"] if existing else [])


@pytest.mark.parametrize("name", TOOLS)
def test_an_older_model_in_the_folder_is_replaced_whole(name, checkpoints, tmp_path, caplog):
    target = tmp_path / "out"
    target.mkdir()
    for file in ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "model-9.safetensors"):
        (target / file).write_text("old")
    (target / "notes.txt").write_text("mine")
    (target / "logs").mkdir()
    (target / "logs" / "x").write_text("mine too")
    tool(name, checkpoints, target)
    kept = content(target)
    assert (kept["notes.txt"], kept["logs/x"]) == (b"mine", b"mine too")
    assert not [file for file in kept if file.startswith(("pytorch_model", "model-9"))]
    report = inspect_checkpoint(str(target))
    assert report.can_chat or name == "make"
    assert "are replaced" in caplog.text
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", TOOLS)
def test_no_whole_model_is_written_beside_an_adapter(name, checkpoints, tmp_path):
    """The adapter would be put on once more by whoever loads the folder; and it may be the only copy."""
    target = shutil.copytree(checkpoints / "llava-tiny-v1.5-lora", tmp_path / "out")
    before = content(target)
    with pytest.raises(CheckpointError, match=r"out holds an adapter \(adapter_config\.json\)") as caught:
        tool(name, checkpoints, target)
    assert "\n" not in str(caught.value) and content(target) == before


@pytest.mark.slow
def test_a_killed_merge_leaves_nothing_that_looks_whole(checkpoints, tmp_path):
    """Killed while it writes, and then started again: what it left is removed."""
    code = (
        "import os, time, torch, sys\n"
        "from llava.model.tools.extract import merge_lora\n"
        "from transformers import PreTrainedModel\n"
        "save = PreTrainedModel.save_pretrained\n"
        "def slow(self, folder, **kwargs):\n"
        "    save(self, folder, **kwargs)\n"
        "    with open(sys.argv[4] + '~', 'w') as file:\n"
        "        file.write(str(os.getpid()))\n"
        "    os.rename(sys.argv[4] + '~', sys.argv[4])\n"
        "    time.sleep(600)\n"
        "PreTrainedModel.save_pretrained = slow\n"
        "merge_lora(*sys.argv[1:4], 'x-lora')\n"
    )
    target = tmp_path / "out"
    arguments = [str(checkpoints / "llava-tiny-v1.5-lora"), str(checkpoints / "vicuna-tiny"), str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    mark = tmp_path.parent / f"{tmp_path.name}-saved"
    with subprocess.Popen([python(), "-c", code, *arguments, str(mark)], env=environment) as process:
        while not mark.exists() and process.poll() is None:
            time.sleep(0.1)
        os.kill(int(mark.read_text()), signal.SIGKILL)
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1  # the hidden folder that it wrote to
    merge_lora(*arguments, "x-lora")
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
    assert inspect_checkpoint(str(target)).can_chat


@pytest.mark.parametrize("name", ["merge", "make", "apply"])
def test_inputs_are_not_overwritten(name, checkpoints):
    inputs = {"merge": "llava-tiny-v1.5-lora", "make": "llava-tiny-v0", "apply": "llava-tiny-v0-delta"}
    for folder in (inputs[name], "vicuna-tiny"):
        with pytest.raises(CheckpointError, match="would be overwritten by what is made from it"):
            tool(name, checkpoints, checkpoints / folder)


def test_consolidating_in_place(copy):
    folder = copy("llava-tiny-v1.5")
    consolidate_ckpt(str(folder), str(folder))
    assert sorted(folder.glob("*.bin*")) == []
    assert inspect_checkpoint(str(folder)).can_chat


# --------------------------------------------------------------------------------------------- whole_folder


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    target = tmp_path / "model"
    aside = tmp_path / ".model.before-here-1"
    aside.mkdir()
    (aside / "config.json").write_text("old")
    (aside / "notes").write_text("mine")
    with pytest.raises(KeyError), whole_folder(target):
        assert content(target) == {"config.json": b"old", "notes": b"mine"}
        raise KeyError
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_a_crash_after_the_renames_loses_nothing(tmp_path):
    for name, file in (("model", "config.json"), (".model.before-here-1", "notes")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(name)
    with whole_folder(tmp_path / "model") as scratch:
        (scratch / "config.json").write_text("new")
    assert content(tmp_path / "model") == {"config.json": b"new", "notes": b".model.before-here-1"}
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    replace = os.replace

    def fail_for_the_new(source, place):
        if ".partial-" in str(source):
            raise OSError(5, "Input/output error")
        replace(source, place)

    monkeypatch.setattr(os, "replace", fail_for_the_new)
    with pytest.raises(CheckpointError, match="Input/output error"), whole_folder(target) as scratch:
        (scratch / "config.json").write_text("new")
    assert content(tmp_path) == {"model/config.json": b"old"}


def test_the_folder_one_stands_in_keeps_its_place(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "model-1.safetensors").write_text("old")
    monkeypatch.chdir(tmp_path)
    number = tmp_path.stat().st_ino
    with whole_folder(".") as scratch:
        (scratch / "config.json").write_text("new")
        (scratch / "model.safetensors").write_text("new")
    assert tmp_path.stat().st_ino == number
    assert content(tmp_path) == {"config.json": b"new", "model.safetensors": b"new"}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_others_may_read_what_the_umask_lets_them(mask, build, tmp_path):
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
        build().save_pretrained(tmp_path / "model")
        with whole_folder(tmp_path / "folder") as scratch:
            shutil.copy(tmp_path / "model" / "model.safetensors", scratch)
            (scratch / "model.safetensors").chmod(0o600)
    finally:
        os.umask(before)
    for file in tmp_path.rglob("*.safetensors"):
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file


def test_a_scratch_folder_of_a_living_process_stays(tmp_path):
    other = tmp_path / f".model.partial-{platform.node()}-{os.getppid()}"
    other.mkdir()
    with whole_folder(tmp_path / "model") as scratch:
        (scratch / "x").write_text("x")
    assert other.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"), whole_folder(tmp_path / "model"):
        pass
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_of_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="no folder"), whole_folder(tmp_path / "file" / "m"):
        pass


# ------------------------------------------------------------------------------------ words of write failures


class SafetensorError(Exception):
    """Has the name of that of safetensors, by which it is known."""


TORCHS = "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "x"), "the disk quota is used up"),
        (OSError(errno.EROFS, "x"), "Read-only file system"),
        (OSError(errno.EACCES, "x"), "Permission denied"),
        (OSError(errno.ENAMETOOLONG, "x"), "too long for the file system"),
        (SafetensorError("Error while serializing: I/O error: bad (os error 13)"), "Permission denied"),
        (SafetensorError("Error while serializing: I/O error: bad (os error 28)"), "the disk is full"),
        (SafetensorError("Error while serializing: I/O error: bad (os error 30)"), "Read-only file system"),
        (Exception("No space left on device"), "the disk is full"),
        (RuntimeError(TORCHS), "the disk did not take it"),
        (RuntimeError("shapes do not match"), ""),
        (KeyError("bug"), ""),
        (CheckpointError("a sentence of ours (os error 2)"), ""),
    ],
)
def test_words_come_from_the_number(error, words, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = write_failure(error, tmp_path)
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize("error", [RuntimeError(TORCHS), SafetensorError("it failed")])
def test_a_writer_that_hides_the_number(error, tmp_path, monkeypatch):
    """An unwritable place is not called a full disk, however little is free there."""
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (tmp_path / "file").write_text("")
    assert write_failure(error, tmp_path / "file").endswith("(Not a directory)")
    assert write_failure(error, tmp_path / "none").endswith("(No such file or directory)")
    assert "full" not in write_failure(error, Path("/proc"))
    assert write_failure(error, tmp_path) == "the disk is full"


@pytest.mark.parametrize("length", [300, 5000])
@pytest.mark.parametrize("name", TOOLS)
def test_too_long_a_path_is_one_sentence(name, length, checkpoints, tmp_path, capsys):
    target = tmp_path / ("x" * length)
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: tool(name, checkpoints, target))
    told = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert told.startswith("error: ") and "too long for the file system" in told and len(told) < 700
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ merge and extract


def logits(model):
    """Logits of a prompt with an image and of text alone."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 500, (1, 9), generator=generator)
    ids[0, 3] = -200
    images = torch.randn(1, 3, 56, 56, generator=generator)
    with torch.no_grad():
        return torch.cat(
            [model(input_ids=ids, images=images).logits, model(input_ids=ids[:, 4:]).logits], dim=1
        )


def test_merged_logits_are_those_of_the_active_adapter(family, checkpoints, tmp_path, monkeypatch):
    base = folders.text_base(family, tmp_path / "base", checkpoints)
    folders.lora(family, tmp_path / "lora", base, checkpoints)
    merge_lora(str(tmp_path / "lora"), str(base), str(tmp_path / "merged"), "x-lora", dtype="float32")
    merge_lora(str(tmp_path / "lora"), str(base), str(tmp_path / "half"), "x-lora")
    load = {"device": "cpu", "dtype": "float32"}
    merged = load_pretrained_model(str(tmp_path / "merged"), None, "x", **load)[1]
    half = load_pretrained_model(str(tmp_path / "half"), None, "x", **load)[1]
    monkeypatch.setattr(loading, "merge_adapter", loading.attach_adapter)
    active = load_pretrained_model(str(tmp_path / "lora"), str(base), "x-lora", **load)[1]
    assert any("lora_A" in name for name, _ in active.named_parameters())
    monkeypatch.undo()
    want = logits(active)
    torch.testing.assert_close(logits(merged), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(half), want, atol=0.05, rtol=0.05)
    with active.disable_adapter():
        assert (logits(active) - want).abs().max() > 0.1  # the adapter makes a difference


@pytest.mark.parametrize("kind", ["lora", "text_lora"])
def test_a_base_with_vicunas_generation_config(kind, checkpoints, tmp_path):
    base = folders.text_base("llama", tmp_path / "base", checkpoints)
    wrong = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "bos_token_id": 1, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(wrong))
    folders.lora("llama", tmp_path / "lora", base, checkpoints)
    if kind == "text_lora":
        (tmp_path / "lora" / "config.json").unlink()
        (tmp_path / "lora" / "non_lora_trainables.bin").unlink()
    merge_lora(str(tmp_path / "lora"), str(base), str(tmp_path / "merged"), "x-lora")
    stored = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert (stored["do_sample"], stored["temperature"]) == (True, 0.9)
    assert inspect_checkpoint(str(tmp_path / "merged")).can_chat


@pytest.mark.parametrize("name", ["make", "apply", "consolidate"])
def test_other_tools_with_vicunas_generation_config(name, copy, checkpoints, tmp_path):
    wrong = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    root = tmp_path / "all"
    root.mkdir()
    for folder in ("vicuna-tiny", "llava-tiny-v0", "llava-tiny-v0-delta", "llava-tiny-v1.5-lora"):
        shutil.copytree(checkpoints / folder, root / folder)
        (root / folder / "generation_config.json").write_text(json.dumps(wrong))
    tool(name, root, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_dtype_of_a_merge(checkpoints, tmp_path):
    arguments = [str(checkpoints / "llava-tiny-v1.5-lora"), str(checkpoints / "vicuna-tiny")]
    for dtype in ("bfloat16", "float16"):
        merge_lora(*arguments, str(tmp_path / dtype), "x-lora", dtype=dtype)
        assert {str(value.dtype) for value in load_weights(tmp_path / dtype).values()} == {f"torch.{dtype}"}
        assert folders.read_config(tmp_path / dtype)["torch_dtype"] == dtype


@pytest.mark.parametrize("name", ["llava-tiny-v1.5", "vicuna-tiny", "llava-tiny-pretrain"])
def test_nothing_to_merge(name, checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="has no adapter"):
        merge_lora(str(checkpoints / name), str(checkpoints / "vicuna-tiny"), str(tmp_path / "m"), "x")


def test_projector_of_adapters_and_of_stage_one(checkpoints, tmp_path):
    for name, file in (
        ("llava-tiny-v1.5-lora", "non_lora_trainables.bin"),
        ("llava-tiny-pretrain", "mm_projector.bin"),
    ):
        names = extract_projector(str(checkpoints / name), str(tmp_path / name))
        assert names == [
            f"model.mm_projector.{part}" for part in ("0.bias", "0.weight", "2.bias", "2.weight")
        ]
        stored = load_weights(checkpoints / name / file)
        key = next(key for key in stored if key.endswith("0.weight"))
        assert torch.equal(load_weights(tmp_path / name)["model.mm_projector.0.weight"], stored[key])


def test_extracting_to_a_bad_place(copy, tmp_path):
    folder = copy("llava-tiny-mpt")
    for place, message in ((tmp_path, "is a folder"), (folder / "pytorch_model.bin", "is read from")):
        with pytest.raises(CheckpointError, match=message):
            extract_projector(str(folder), str(place))


def test_extracting_onto_a_full_disk(copy, tmp_path):
    folder = copy("llava-tiny-pretrain")
    save_tensors({"model.mm_projector.weight": torch.zeros(200, 200)}, folder / "mm_projector.bin")
    file = tmp_path / "p.bin"
    file.write_text("old")
    with full_disk(), pytest.raises(CheckpointError, match=r"p\.bin could not be written"):
        extract_projector(str(folder), str(file))
    assert file.read_text() == "old"


@pytest.mark.parametrize("name", ["tiny-clip", "llava-tiny-v1.5-lora"])
def test_deltas_of_what_is_no_whole_model(name, checkpoints, tmp_path):
    message = "image encoder" if name == "tiny-clip" else "not a whole model"
    with pytest.raises(CheckpointError, match=message):
        make_delta(str(checkpoints / "vicuna-tiny"), str(checkpoints / name), str(tmp_path / "d"))
