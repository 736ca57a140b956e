"""Locks that killed compilations left: told apart from those of living ones, and removed."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from llava.train.setup import compiling
from llava.train.setup.compiling import clear_dead_locks, is_built
from llava.utils import watched


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    return folder / "lock"


def _leave(lock: Path, seconds_ago: float) -> None:
    lock.write_bytes(b"")
    then = time.time() - seconds_ago
    os.utime(lock, (then, then))


def test_an_old_lock_without_an_owner_is_removed(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    _leave(lock, 1000)
    assert clear_dead_locks() == [lock]
    assert not lock.exists() and str(lock) in caplog.text


def test_a_fresh_lock_without_an_owner_is_named_and_removed_after_a_while(
    lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _leave(lock, 0)
    assert clear_dead_locks(quiet_seconds=0.3, poll_seconds=0.05) == [lock]
    assert f"rm {lock}" in caplog.text


def test_the_lock_of_a_living_compilation_stays(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    baton = FileBaton(str(lock))  # as torch takes it
    assert baton.try_acquire()
    os.utime(lock, (1, 1))
    with caplog.at_level(logging.INFO):
        assert clear_dead_locks() == []
    assert lock.exists() and f"process {os.getpid()} compiles" in caplog.text
    baton.release()


def test_files_that_change_show_a_compilation_elsewhere(lock: Path) -> None:
    _leave(lock, 1000)
    (lock.parent / "part.o").write_bytes(b"")
    assert compiling._quiet_for(lock.parent) < 100


def test_what_is_compiled_is_known(lock: Path) -> None:
    assert not is_built("deepspeed_shm_comm")
    (lock.parent / "deepspeed_shm_comm.so").write_bytes(b"")
    assert is_built("deepspeed_shm_comm")


@pytest.mark.parametrize(("takes", "told"), [(0.3, 1), (0.0, 0)])
def test_a_long_wait_says_once_what_is_waited_for(
    takes: float, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    with watched("the others", "start them", seconds=0.05):
        time.sleep(takes)
    time.sleep(0.1)
    assert caplog.text.count("still waiting for the others") == told


def test_every_test_compiles_with_the_ninja_of_this_environment() -> None:
    """Two versions of ninja read one log differently: each compiles again what the other has."""
    own = Path(sys.executable).with_name("ninja")
    if not own.exists():
        pytest.skip("this environment has no ninja of its own")
    assert shutil.which("ninja") == str(own)
