"""Files and folders appear whole or not at all, on the disk, with the permissions of the umask."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
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


@pytest.mark.parametrize(
    ("owner", "stays"),
    [("parent", True), ("self", False), ("other-host", True), ("unknown", True), ("own-thread", True)],
)
def test_whose_leftovers_are_removed(owner: str, stays: bool, tmp_path: Path) -> None:
    number: object = os.getppid() if owner == "parent" else os.getpid()
    number = 10**30 if owner == "unknown" else number
    if owner == "own-thread":
        other = threading.Thread(target=threading.Event().wait, args=(20,), daemon=True)
        other.start()
        number = f"{number}.{other.native_id}"
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


def test_threads_that_write_the_same_place(tmp_path: Path) -> None:
    """Each writes a scratch of its own; the last rename wins, and the content is of one of them."""
    both, failed = threading.Barrier(2), []

    def write(text: str) -> None:
        try:
            with atomic_file(tmp_path / "out") as scratch:
                both.wait(20)
                scratch.write_text(text * 10_000)
                both.wait(20)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failed
    assert text_of(tmp_path / "out") in ("a" * 10_000, "b" * 10_000)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_stays_a_link(kind: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    put(tmp_path / "there" / "real", "old", kind)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    put(tmp_path / "link", "new", kind)
    assert (tmp_path / "link").is_symlink()
    assert text_of(tmp_path / "there" / "real") == text_of(tmp_path / "link") == "new"
    assert len(list(tmp_path.iterdir())) == 2 and len(list((tmp_path / "there").iterdir())) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_ones_permissions_stay(kind: str, tmp_path: Path) -> None:
    place, mode = tmp_path / "out", 0o600 if kind == "file" else 0o2770
    put(place, "old", kind)
    place.chmod(mode)
    put(place, "new", kind)
    assert place.stat().st_mode & 0o7777 == mode and text_of(place) == "new"


def test_a_folder_whose_own_folder_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be filled, though nothing can be made beside it."""
    (tmp_path / "out").mkdir()
    number = (tmp_path / "out").stat().st_ino
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    with atomic_folder(tmp_path / "out") as scratch:
        assert scratch.parent == tmp_path / "out"
        (scratch / "x").write_text("new")
    assert text_of(tmp_path / "out") == "new" and (tmp_path / "out").stat().st_ino == number
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["x"]


@pytest.mark.parametrize("living", [True, False])
def test_the_second_half_of_another_process_is_left_to_it(living: bool, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    before = tmp_path / f".out.before-{platform.node()}-{os.getppid() if living else ended.pid}"
    put(before, "old", "folder")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "out"):
        raise KeyError
    assert before.exists() == living and (tmp_path / "out").exists() != living


def test_links_in_a_folder_that_lead_nowhere(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as scratch:
        (scratch / "link").symlink_to("/none/none")
    assert (tmp_path / "out" / "link").is_symlink()


def test_half_characters_become_the_escapes_of_json(tmp_path: Path) -> None:
    content = {"name": "a\udcff\ud83d ä"}
    atomic.write_text(tmp_path / "x.json", json.dumps(content, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == content
