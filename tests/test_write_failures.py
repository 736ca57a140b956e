"""What cannot be written ends each program that writes with one sentence, which names the argument."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import complaint_of

from llava import atomic
from llava.atomic import atomic_file, atomic_folder, obstacle, words_of

# program, its argument for what is written, whether that is a folder
OUTPUTS = [
    ("make_delta", "delta-path", True),
    ("apply_delta", "target-model-path", True),
    ("consolidate", "dst", True),
    ("merge", "save-model-path", True),
    ("to-hf", "dst", True),
    ("from-hf", "dst", True),
    ("train", "output_dir", True),
    ("mmproj", "dst", False),
    ("extract", "output", False),
    ("check_data", "fix", False),
    ("check_data", "json", False),
]


def flag_of(argument: str, program: str) -> str:
    return "DST" if program in ("to-hf", "from-hf", "mmproj") else f"--{argument} "


@pytest.fixture
def complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a program that has to end with exit code 2; returns its one sentence. Nothing new may be left."""

    def run(name: str, **other: str) -> str:
        (tmp_path / "d.json").write_text("[]")
        before = sorted(tmp_path.rglob("*"))
        told = complaint_of(name, tmp_path, monkeypatch, capsys, **other)
        assert sorted(tmp_path.rglob("*")) == before
        return told

    return run


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that is mounted read-only, which binds even root."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# ---- seen before anything is loaded ----


@pytest.mark.parametrize(("program", "argument", "folder"), OUTPUTS)
def test_read_only_places(
    program: str, argument: str, folder: bool, read_only: Path, complaint: Callable[..., str]
) -> None:
    told = complaint(program, **{argument: f"{read_only}/out.json"})
    assert "cannot be written: it is not writable (Read-only file system)" in told
    assert flag_of(argument, program) in told


@pytest.mark.parametrize("place", ["/proc/out.json", "/sys/out.json"])
@pytest.mark.parametrize(("program", "argument", "folder"), OUTPUTS)
def test_places_that_take_no_files(
    program: str, argument: str, folder: bool, place: str, complaint: Callable[..., str]
) -> None:
    told = complaint(program, **{argument: place})
    assert "cannot be written: it is not writable for you" in told and flag_of(argument, program) in told


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("program", "argument", "folder"), OUTPUTS)
def test_the_number_decides(
    program: str,
    argument: str,
    folder: bool,
    number: int,
    complaint: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(atomic, "try_to_write", lambda *_: error)
    told = complaint(program, **{argument: f"{tmp_path}/new.json"})
    assert words_of(error) in told and flag_of(argument, program) in told
    assert ("full" in told) == (number == errno.ENOSPC)


@pytest.mark.parametrize("length", [300, 5000])
@pytest.mark.parametrize(("program", "argument", "folder"), OUTPUTS)
def test_too_long(
    program: str, argument: str, folder: bool, length: int, complaint: Callable[..., str], tmp_path: Path
) -> None:
    told = complaint(program, **{argument: f"{tmp_path}/{'x' * length}.json"})
    assert "is too long for the file system" in told and flag_of(argument, program) in told
    assert len(told) < 900


@pytest.mark.parametrize(("program", "argument", "folder"), OUTPUTS)
def test_something_in_the_way(
    program: str, argument: str, folder: bool, complaint: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.json").mkdir()
    way = tmp_path / ("file" if folder else "folder.json")
    told = complaint(program, **{argument: str(way)})
    assert ("it is a file; expected a folder" if folder else "it is a folder") in told
    assert flag_of(argument, program) in told
    told = complaint(program, **{argument: f"{tmp_path}/file/out.json"})
    assert "a part of the path is no folder" in told and flag_of(argument, program) in told
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("argument", ["fix", "json"])
def test_missing_parents_of_the_doctors_files(
    argument: str, complaint: Callable[..., str], tmp_path: Path
) -> None:
    """Every other program makes them."""
    told = complaint("check_data", **{argument: f"{tmp_path}/none/out.json"})
    assert f"the folder of --{argument} " in told and "does not exist; make it first" in told


# ---- the judgement itself ----


@pytest.mark.parametrize("folder", [True, False])
def test_what_can_be_written_has_no_obstacle(
    folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for place in ("new", "there/new", "none/none/new", "é" * 127, "there" if folder else "file"):
        assert obstacle(place, folder=folder) == "", place
    assert sorted(os.listdir()) == ["file", "there"] and not os.listdir("there")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_is_full(kind: str, tmp_path: Path) -> None:
    """A real one of 64 KB: the old content stays, and nothing is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        place = disk / "out"
        with (atomic_file if kind == "file" else atomic_folder)(place) as scratch:
            (scratch if kind == "file" else scratch / "x").write_text("old")
        with (
            pytest.raises(OSError) as caught,
            (atomic_file if kind == "file" else atomic_folder)(place) as scratch,
        ):
            (scratch if kind == "file" else scratch / "x").write_bytes(bytes(200_000))
        assert words_of(caught.value) == "the disk is full"
        assert (place if kind == "file" else place / "x").read_text() == "old"
        assert os.listdir(disk) == ["out"]
        assert words_of(atomic.try_to_write(disk) or OSError()) == "the disk is full"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
