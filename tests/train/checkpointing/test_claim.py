"""A start that fails before its first step leaves the output folder as it was, and no other run's files."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorded_training import flags, run_train
from transformers import TrainerControl, TrainerState
from warming import python

from llava.train.checkpointing.claim import LOCK_FILE, OutputClaim, OutputLock
from llava.train.checkpointing.manifest import MANIFEST_FILE
from llava.train.llava_trainer import LLaVATrainer
from llava.utils import UserError

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_patch_token False --save_strategy no"
CHAT = f"--version v1 --data_path {{data}}/finetune.json {V15} --max_steps 2 --per_device_train_batch_size 2"
FAULTS = {
    "settings of the model": "--model_name_or_path {ck}/llava-tiny-v1.5 --mm_projector_type linear",
    "what trains": "--tune_mm_mlp_adapter True --mm_use_im_start_end True",
    "no checkpoint": "--resume {data}/none",
}


def _content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("before", ["no folder", "files of a run"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_start_leaves_the_folder_as_it_was(
    fault: str, before: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "out"
    if before != "no folder":
        out.mkdir(parents=True)
        (out / MANIFEST_FILE).write_text('{"command": "of a run before"}')
        (out / "config.json").write_text("{}")
    found = _content(tmp_path)
    with pytest.raises(UserError):
        run_train(flags(checkpoints, training_data, out, f"{CHAT} {FAULTS[fault]}"))
    assert _content(tmp_path) == found


class _Crash(Exception):
    pass


@pytest.mark.parametrize(("step", "stays"), [(1, []), (2, [MANIFEST_FILE])])
def test_files_stay_once_a_step_is_done(
    step: int, stays: list[str], checkpoints: Path, training_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    taken = LLaVATrainer.training_step

    def crash(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            raise _Crash
        return taken(self, *args, **kwargs)

    monkeypatch.setattr(LLaVATrainer, "training_step", crash)
    with pytest.raises(_Crash):
        run_train(flags(checkpoints, training_data, tmp_path / "out", CHAT))
    assert list(_content(tmp_path)) == (["out", *(f"out/{name}" for name in stays)] if stays else [])


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), SystemExit(1), RuntimeError("no")])
def test_every_way_to_fail_is_one(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), OutputClaim(tmp_path / "out"):
        (tmp_path / "out" / MANIFEST_FILE).write_text("{}")
        raise error
    assert _content(tmp_path) == {}


def test_another_live_run_keeps_its_files(tmp_path: Path) -> None:
    code = "import os; from pathlib import Path; from llava.train.checkpointing.claim import OutputLock; "
    code += (
        f"lock = OutputLock(Path({str(tmp_path / 'out')!r})); print('held', os.getpid(), flush=True); input()"
    )
    with subprocess.Popen(
        [python(), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        held, process = other.stdout.readline().split()
        assert held == "held"
        (tmp_path / "out" / MANIFEST_FILE).write_text("{}")
        before = _content(tmp_path)
        with pytest.raises(UserError, match="another run is writing"), OutputClaim(tmp_path / "out"):
            raise AssertionError
        assert _content(tmp_path) == before and f"out/{LOCK_FILE}" in before
        os.kill(int(process), signal.SIGKILL)


def test_files_that_others_have_put_there_stay(tmp_path: Path) -> None:
    with pytest.raises(_Crash), OutputClaim(tmp_path / "a" / "out"):
        (tmp_path / "a" / "notes").write_text("")
        raise _Crash
    assert sorted(_content(tmp_path)) == ["a", "a/notes"]


def test_a_run_that_ends_well_gives_the_folder_free(tmp_path: Path) -> None:
    with OutputClaim(tmp_path) as claim:
        claim.on_step_end(SimpleNamespace(), TrainerState(), TrainerControl())
        assert (tmp_path / LOCK_FILE).exists()
    assert not (tmp_path / LOCK_FILE).exists()
    OutputLock(tmp_path).release()


def test_a_process_that_writes_nothing_claims_nothing(tmp_path: Path) -> None:
    with pytest.raises(_Crash), OutputClaim(None):
        raise _Crash
    assert _content(tmp_path) == {}
