"""Files and folders appear whole or not at all, on the disk, with the permissions of the umask."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from llava import atomic
from llava.atomic import atomic_file, atomic_folder, exchange, move_into

ROOT = Path(__file__).parents[1]
KINDS = ("file", "folder")


def put(place: Path, text: str, kind: str) -> None:
    """Write text to a file, or to the file x of a folder, as a user of the two would."""
    with writer(kind)(place) as scratch:
        fill(scratch, text, kind)


def writer(kind: str) -> Callable[[Path], AbstractContextManager[Path]]:
    return atomic_file if kind == "file" else atomic_folder


def fill(scratch: Path, text: str, kind: str) -> None:
    (scratch if kind == "file" else scratch / "x").write_text(text)


def text_of(place: Path) -> str:
    return (place / "x" if place.is_dir() else place).read_text()


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_appears_at_the_end(kind: str, existing: bool, tmp_path: Path) -> None:
    place = tmp_path / "out"
    if existing:
        put(place, "old", kind)
    with writer(kind)(place) as scratch:
        assert scratch.parent == tmp_path and scratch != place
        fill(scratch, "new", kind)
        assert (text_of(place) == "old") if existing else not place.exists()
    assert text_of(place) == "new"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyError("bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_leaves_nothing(kind: str, existing: bool, error: BaseException, tmp_path: Path) -> None:
    place = tmp_path / "out"
    if existing:
        put(place, "old", kind)
    with pytest.raises(type(error)), writer(kind)(place) as scratch:
        fill(scratch, "new", kind)
        raise error
    assert list(tmp_path.iterdir()) == ([place] if existing else [])
    assert not existing or text_of(place) == "old"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_in_the_middle_leaves_the_old_one(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    put(place, "old", kind)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from llava.atomic import atomic_file, atomic_folder\n"
        f"with atomic_{kind}(Path(sys.argv[1])) as scratch:\n"
        f"    ({'scratch' if kind == 'file' else 'scratch / chr(120)'}).write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code, str(place)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert text_of(place) == "old"
    assert len(list(tmp_path.iterdir())) == 2
    put(place, "new", kind)  # the next one removes what the dead one left
    assert text_of(place) == "new" and list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file") as scratch:
            scratch.write_text("x")
            scratch.chmod(0o600)  # as safetensors does
        put(tmp_path / "folder", "x", "folder")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("kind", KINDS)
def test_the_disk_has_it_before_the_name_and_the_name_at_the_end(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    told: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watch_fsync(handle: int) -> None:
        told.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def watch_replace(source: Path, target: Path) -> None:
        told.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    put(place, "new", kind)
    inner = [] if kind == "file" else ["fsync x"]
    scratch = atomic.aside(place, "partial").name
    assert told == [*inner, f"fsync {scratch}", "rename", f"fsync {tmp_path.name}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_folder(kind: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError), writer(kind)(tmp_path / "out"):
            raise AssertionError("nothing may be written before it is known that one may")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_takes_no_files(kind: str) -> None:
    """/proc takes none, not even from root."""
    with pytest.raises(OSError), writer(kind)(Path("/proc/out")):
        raise AssertionError("nothing may be written before it is known that one may")


@pytest.mark.parametrize("kind", KINDS)
def test_long_names_and_names_with_brackets(kind: str, tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127, "[ab]*?"):
        put(tmp_path / name, name, kind)
        assert text_of(tmp_path / name) == name
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("owner", "stays"), [("parent", True), ("self", False), ("other-host", True)])
def test_whose_leftovers_are_removed(owner: str, stays: bool, tmp_path: Path) -> None:
    number = os.getppid() if owner == "parent" else os.getpid()
    host = f"{platform.node()}-2" if owner == "other-host" else platform.node()
    left = tmp_path / f".out.partial-{host}-{number}"
    left.write_text("half")
    put(tmp_path / "out", "new", "file")
    assert left.exists() == stays


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError), atomic_file(place):
            raise AssertionError
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize(("keep", "left"), [(True, {"new.bin", "notes"}), (False, {"new.bin"})])
@pytest.mark.parametrize("inside", [True, False])
def test_what_stays_of_an_older_folder(
    inside: bool, keep: bool, left: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    for name in ("old.bin", "notes"):
        (place / name).write_text("old")
    if inside:
        monkeypatch.chdir(place)
    with atomic_folder(place, keep=keep, stale=("*.bin",)) as scratch:
        (scratch / "new.bin").write_text("new")
    assert {one.name for one in place.iterdir()} == left
    assert list(tmp_path.iterdir()) == [place]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "out", "old", "folder")
    put(tmp_path / "new", "new", "folder")
    replace = os.replace

    def fail_for_the_new(source: Path, place: Path) -> None:
        if Path(source).name == "new":
            raise OSError(5, "Input/output error")
        replace(source, place)

    monkeypatch.setattr(os, "replace", fail_for_the_new)
    with pytest.raises(OSError, match="Input/output"):
        exchange(tmp_path / "new", tmp_path / "out")
    assert text_of(tmp_path / "out") == "old"


def test_files_of_the_last_names_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("new", "out"):
        (tmp_path / folder).mkdir()
        for name in ("b", "last", "z"):
            (tmp_path / folder / name).write_text(folder)
    replace, seen = os.replace, []

    def watch(source: Path, place: Path) -> None:
        seen.append((Path(source).name, (tmp_path / "out" / "last").exists()))
        replace(source, place)

    monkeypatch.setattr(os, "replace", watch)
    move_into(tmp_path / "new", tmp_path / "out", last=("last",))
    assert {name for name, _ in seen[:2]} == {"b", "z"} and seen[2] == ("last", False)
    assert not any(there for _, there in seen)
    assert {one.read_text() for one in (tmp_path / "out").iterdir()} == {"new"}
