"""checkpoint-N of every kind of run: complete, loadable, mergeable; rotation; a disk that takes no more."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train

from llava import atomic
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, read_tensors
from llava.model.tools.extract import merge_lora
from llava.train.checkpointing import folders
from llava.train.checkpointing.folders import find_checkpoints
from llava.utils import run_program

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} --learning_rate 1e-3"
STAGE_1 = f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {V15}"
LORA = f"{CHAT} --lora_enable True --lora_r 4 --lora_dropout 0.0"
SAVING = "--save_strategy steps --save_steps 1 --max_steps 2"

STATE = {
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "run_memory_0.json",
    "run_manifest.json",
    "checkpoint_files.json",
}
COMMON = {"config.json", "tokenizer.model", "tokenizer_config.json", "preprocessor_config.json"}


def _logits(model: Any) -> torch.Tensor:
    """Compute logits of a prompt with an image."""
    model.eval()
    ids = torch.tensor([[1, 300, 301, -200, 305, 17]])
    pixels = torch.linspace(-1, 1, 3 * 56 * 56).reshape(1, 3, 56, 56)
    tower = model.get_vision_tower()
    pixels = torch.nn.functional.interpolate(pixels, tower.config.image_size)
    with torch.no_grad():
        return model(input_ids=ids, images=pixels.to(tower.dtype)).logits.float()


def _load(path: Path, base: Path | None) -> Any:
    name = get_model_name_from_path(str(path))
    where = None if base is None else str(base)
    return load_pretrained_model(str(path), where, name, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (STAGE_1, {"mm_projector.bin"}),
        (CHAT, {"model.safetensors"}),
        (LORA, {"adapter_model.safetensors", "adapter_config.json", "non_lora_trainables.bin"}),
        (f"{LORA} --bits 8", {"adapter_model.safetensors", "non_lora_trainables.bin"}),
    ],
    ids=["stage_1", "full", "lora", "qlora"],
)
def test_a_checkpoint_is_complete(
    command: str, files: set[str], checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "llava-tiny"
    run = run_train(flags(checkpoints, training_data, out, f"{command} {SAVING}"))
    for number in (1, 2):
        names = {path.name for path in (out / f"checkpoint-{number}").iterdir()}
        assert COMMON | STATE | files <= names
    assert [one.state for one in find_checkpoints(out)] == ["complete", "complete"]
    assert not list(out.glob("tmp-*"))
    if "--bits" in command:  # the folder goes on the base as it is stored; the run's was quantised
        expected = _logits(run.trainer.model)
        loaded = _logits(_load(out / "checkpoint-2", checkpoints / "vicuna-tiny")[1])
        assert torch.nn.functional.cosine_similarity(loaded.flatten(), expected.flatten(), dim=0) > 0.99
        return
    base = None if "model.safetensors" in files else checkpoints / "vicuna-tiny"
    tokenizer, model, processor, _ = _load(out / "checkpoint-2", base)
    assert processor is not None and len(tokenizer) == model.config.vocab_size
    expected = _logits(run.trainer.model)
    assert torch.allclose(_logits(model), expected, atol=2e-4)
    if command == LORA:
        merge_lora(str(out / "checkpoint-2"), str(base), str(tmp_path / "merged"), "llava-tiny-lora")
        assert torch.allclose(_logits(_load(tmp_path / "merged", None)[1]), expected, atol=2e-2)


def test_image_newline_is_kept_in_stage_1(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-tiny-anyres"
    command = f"{STAGE_1} --mm_patch_merge_type spatial_unpad --image_aspect_ratio pad {SAVING}"
    run = run_train(flags(checkpoints, training_data, out, command))
    newline = run.trainer.model.get_model().image_newline
    for folder in (out, out / "checkpoint-1"):
        assert torch.equal(read_tensors(folder / "mm_projector.bin")["model.image_newline"], newline)
    next_stage = f"{CHAT} --mm_patch_merge_type spatial_unpad --save_strategy no --seed 7"
    next_stage += f" --pretrain_mm_mlp_adapter {out}/mm_projector.bin"
    second = run_train(flags(checkpoints, training_data, tmp_path / "stage-2", next_stage), steps=0)
    assert torch.equal(second.trainer.model.get_model().image_newline, newline)


def test_rotation_keeps_the_newest(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    saving = f"{SAVING} --max_steps 4 --save_total_limit 2"
    run_train(flags(checkpoints, training_data, tmp_path / "lora", f"{LORA} {saving}"))
    assert [one.step for one in find_checkpoints(tmp_path / "lora")] == [3, 4]
    # stage 1: all projectors stay, as in the reference; the training state of the newest only
    run_train(flags(checkpoints, training_data, tmp_path / "stage-1", f"{STAGE_1} {saving}"))
    found = find_checkpoints(tmp_path / "stage-1")
    assert [(one.step, one.state) for one in found] == [
        (1, "weights"),
        (2, "weights"),
        (3, "complete"),
        (4, "complete"),
    ]
    first = {path.name for path in found[0].path.iterdir()}
    assert {"config.json", "mm_projector.bin"} <= first
    assert not first & (STATE - {"run_manifest.json"})
    model = _load(found[0].path, checkpoints / "vicuna-tiny")[1]
    assert model.get_model().mm_projector is not None


def test_best_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        _fake_checkpoint(tmp_path / f"checkpoint-{step}")
    folders.rotate(tmp_path, 1, best=str(tmp_path / "checkpoint-1"))
    assert [one.step for one in find_checkpoints(tmp_path)] == [1, 3]
    folders.rotate(tmp_path, None)
    assert [one.step for one in find_checkpoints(tmp_path)] == [1, 3]


# ---- judging folders ----


def _fake_checkpoint(target: Path) -> Path:
    staging = folders.staging_folder(target)
    folders.start_staging(staging)
    staged = staging / target.name
    staged.mkdir()
    names = ("config.json", "mm_projector.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    for name in names:
        (staged / name).write_text("content")
    (staged / "trainer_state.json").write_text('{"global_step": 1}')
    folders.commit(staged, target)
    return target


def test_damage_is_named(tmp_path: Path) -> None:
    folder = _fake_checkpoint(tmp_path / "checkpoint-5")
    assert folders.judge(folder) == folders.Checkpoint(folder, 5, "complete")
    (folder / "optimizer.pt").write_text("cont")
    assert folders.judge(folder).reason == "optimizer.pt has 4 bytes of 7"
    (folder / "optimizer.pt").unlink()
    assert folders.judge(folder) == folders.Checkpoint(folder, 5, "incomplete", "optimizer.pt is missing")
    (folder / "checkpoint_files.json").unlink()  # one that the reference wrote
    assert folders.judge(folder).reason == "it holds weights, but no state of the optimizer"
    (folder / "mm_projector.bin").write_text("")
    assert folders.judge(folder).reason == "mm_projector.bin is empty"
    (folder / "mm_projector.bin").unlink()
    assert folders.judge(folder).state == "incomplete"
    (folder / "checkpoint_files.json").write_text("{")
    assert folders.judge(folder).reason == "checkpoint_files.json cannot be read"
    other = _fake_checkpoint(tmp_path / "checkpoint-6")
    (other / "checkpoint_files.json").unlink()
    (other / "trainer_state.json").write_text('{"global')
    assert "trainer_state.json cannot be read" in folders.judge(other).reason


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    folder = _fake_checkpoint(tmp_path / "checkpoint-5")
    (folder / "old").write_text("old")
    _fake_checkpoint(tmp_path / "checkpoint-5")
    assert not (folder / "old").exists()
    assert not list(tmp_path.glob("tmp-*"))


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    kept = _fake_checkpoint(tmp_path / "checkpoint-5")
    (tmp_path / "tmp-checkpoint-6" / "checkpoint-6").mkdir(parents=True)
    (tmp_path / "tmp-removed-checkpoint-4").mkdir()
    (tmp_path / "tmp-final").mkdir()
    (tmp_path / "tmp-mine").mkdir()  # somebody else's
    # killed after the old folder lost its name and before the new one got it
    (tmp_path / "tmp-checkpoint-5").mkdir()
    kept.rename(tmp_path / "tmp-checkpoint-5" / "replaced")
    names = folders.clear_leftovers(tmp_path)
    assert names == ["tmp-checkpoint-5", "tmp-checkpoint-6", "tmp-final", "tmp-removed-checkpoint-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "tmp-mine"]
    assert folders.judge(kept).state == "complete"


def test_a_model_that_is_half_moved_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, staging = tmp_path / "out", tmp_path / "out" / "tmp-final"
    for folder, text in ((target, "old"), (staging, "new")):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors", "config.json", "zzz.json"):
            (folder / name).write_text(text)
    replace, states = atomic.os.replace, []

    def watch(source: Path, place: Path) -> None:
        states.append({path.name for path in target.iterdir()} >= {"config.json", "adapter_config.json"})
        replace(source, place)

    monkeypatch.setattr(atomic.os, "replace", watch)
    folders.publish(staging, target)
    assert states == [False] * 4
    assert {path.read_text() for path in target.iterdir()} == {"new"}


# ---- a disk that is full ----


def _no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("command", [STAGE_1, LORA], ids=["stage_1", "lora"])
def test_full_disk_while_saving(
    command: str,
    checkpoints: Path,
    training_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    argv = flags(checkpoints, training_data, out, f"{command} {SAVING}")
    save, count = torch.save, 0

    def fill_up(thing: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        if "checkpoint-2" in str(file):
            _no_space()
        save(thing, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fill_up)
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: run_train(argv))
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert lines == [
        f"error: checkpoint-2 could not be written to --output_dir {out}: the disk is full. What was "
        "written of it is removed, checkpoint-1 is kept; free some space, then give the same command again"
    ]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["checkpoint-1"]
    monkeypatch.setattr(torch, "save", save)
    assert len(run_train(argv).loss) == 1  # the step after checkpoint-1


def test_full_disk_at_the_end(
    checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    argv = flags(checkpoints, training_data, out, f"{LORA} {SAVING}")
    monkeypatch.setattr("llava.train.checkpointing.saving.save_lora", _no_space)
    with pytest.raises(CheckpointError, match="the model could not be written .* checkpoint-2 is kept"):
        run_train(argv)
    assert not (out / "config.json").exists() and not (out / "tmp-final").exists()
    monkeypatch.undo()
    assert run_train(argv).loss == []  # nothing is left to train
    assert (out / "adapter_config.json").exists()


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_writers_that_hit_a_limit_are_understood(suffix: str, tmp_path: Path) -> None:
    """A real limit on the size of files, as torch and safetensors meet it."""
    from llava.model.checkpoints.files import save_tensors

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = tmp_path / "checkpoint-1" / f"weights{suffix}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with (
            pytest.raises(CheckpointError, match="checkpoint-1 could not be written") as caught,
            folders.explained_failure("checkpoint-1", tmp_path, file.parent),
        ):
            save_tensors({"w": torch.zeros(100_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "there is no earlier checkpoint" in str(caught.value)
    assert not file.parent.exists()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "tmp-checkpoint-1").mkdir()
    with (
        pytest.raises(RuntimeError, match="shapes do not match"),
        folders.explained_failure("checkpoint-1", tmp_path, tmp_path / "tmp-checkpoint-1"),
    ):
        raise RuntimeError("shapes do not match")
    assert not (tmp_path / "tmp-checkpoint-1").exists()
