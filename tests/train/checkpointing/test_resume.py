"""--resume, what has changed since, the manifest, --deterministic; losses that are not finite."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import free_port, run_group
from recorded_training import Run, flags, run_train
from warming import python

from llava.model.checkpoints.checksums import fingerprint
from llava.model.checkpoints.files import CheckpointError, read_tensors
from llava.train.args import parse_args
from llava.train.callbacks.nonfinite import BATCH_KEY, MAX_IN_A_ROW, NamedBatches, NonFiniteGuard
from llava.train.checkpointing.folders import find_checkpoints
from llava.train.checkpointing.manifest import changes, make_manifest
from llava.train.llava_trainer import LLaVATrainer
from llava.train.records import SAMPLE_KEY
from llava.utils import UserError

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} --learning_rate 1e-3"
STAGE_1 = f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {V15}"
LORA = f"{CHAT} --lora_enable True --lora_r 4 --lora_dropout 0.1"
SAVING = "--save_strategy steps --save_steps 1 --max_steps 3"


@pytest.fixture(scope="module")
def finished(checkpoints: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of three steps with three checkpoints; copy it before writing."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run_train(flags(checkpoints, training_data, out, f"{STAGE_1} {SAVING}"))
    return out


@pytest.fixture
def argv(finished: Path, checkpoints: Path, training_data: Path, tmp_path: Path) -> list[str]:
    """Return the command line of `finished`, for a copy of its folder."""
    shutil.copytree(finished, tmp_path / "out")
    return flags(checkpoints, training_data, tmp_path / "out", f"{STAGE_1} {SAVING}")


def _warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING)


# ---- which checkpoint ----


def test_a_damaged_checkpoint_is_named_and_passed_over(
    argv: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out" / "checkpoint-3" / "optimizer.pt").unlink()
    (tmp_path / "out" / "tmp-checkpoint-4").mkdir()
    assert len(run_train(argv).loss) == 1  # resumes from checkpoint-2
    assert "checkpoint-3 is incomplete (optimizer.pt is missing); it is not used" in _warnings(caplog)
    assert "removed" in _warnings(caplog) and "tmp-checkpoint-4" in _warnings(caplog)
    assert [one.state for one in find_checkpoints(tmp_path / "out")] == ["complete"] * 3  # 3 is replaced


def test_a_finished_run_trains_nothing_and_writes_the_same(
    argv: list[str], finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "mm_projector.bin").unlink()
    assert run_train(argv).loss == []
    a, b = (read_tensors(folder / "mm_projector.bin") for folder in (finished, tmp_path / "out"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_resume_never_starts_over_and_keeps_what_was(
    argv: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(run_train([*argv, "--resume", "never"]).loss) == 3
    aside = list((tmp_path / "out").glob("before-*"))
    assert len(aside) == 1 and str(aside[0]) in _warnings(caplog)
    assert [one.step for one in find_checkpoints(aside[0])] == [1, 2, 3]
    assert [one.step for one in find_checkpoints(tmp_path / "out")] == [1, 2, 3]
    assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["resumed_from"] is None


def test_a_dry_run_leaves_everything_as_it_is(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "out" / "tmp-checkpoint-4").mkdir()
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*"))
    run_train([*argv, "--resume", "never", "--dry_run", "True"])
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*")) == before


@pytest.mark.parametrize("flag", ["--resume", "--resume_from_checkpoint"])
def test_resume_from_a_path(flag: str, argv: list[str], tmp_path: Path) -> None:
    chosen = tmp_path / "out" / "checkpoint-1"
    assert len(run_train([*argv, flag, str(chosen)]).loss) == 2
    assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["resumed_from"] == str(chosen)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "which is no folder; expected auto, never or a checkpoint"),
        ("out", "name .*checkpoint-3"),
        ("out/checkpoint-2", "it holds weights, but no trainer_state.json"),
    ],
)
def test_a_path_that_is_no_checkpoint(path: str, message: str, argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        run_train([*argv, "--resume", str(tmp_path / path)])


@pytest.mark.slow
def test_order_of_samples_after_an_epoch(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    """Batches by modality, dropout, several epochs: the third one is cut in its middle and at its start."""
    records = json.loads((training_data / "finetune.json").read_text())[:12]
    (tmp_path / "few.json").write_text(json.dumps(records))
    command = (
        f"{LORA} --group_by_modality_length True --num_train_epochs 3 --save_strategy steps --save_steps 1"
    )
    command += f" --data_path {tmp_path}/few.json --logging_steps 2"
    runs = {}
    for name in ("whole", "middle", "start"):
        runs[name] = flags(checkpoints, training_data, tmp_path / name, command)
    whole = run_train(runs["whole"])
    assert len(whole.loss) == 9
    for name, steps in (("middle", 7), ("start", 6)):
        first = run_train(runs[name], steps=steps)
        second = run_train(runs[name])
        assert first.loss + second.loss == whole.loss
        histories = [
            [
                (one["step"], one["loss"])
                for one in json.loads((tmp_path / n / "trainer_state.json").read_text())["log_history"]
                if "loss" in one
            ]
            for n in ("whole", name)
        ]
        assert histories[0] == histories[1]


# ---- what has changed, and the manifest ----


def test_changes_are_reported_before_resuming(
    argv: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = argv[argv.index("--data_path") + 1]
    shutil.copy(data, tmp_path / "other.json")
    more = ["--max_steps", "4", "--learning_rate", "5e-4", "--per_device_train_batch_size", "2"]
    more += ["--data_path", str(tmp_path / "other.json"), "--logging_steps", "2"]
    assert len(run_train([*argv, *more]).loss) == 1
    found = [one for one in _warnings(caplog).splitlines() if one.startswith("resuming with a change: ")]
    assert {one.removeprefix("resuming with a change: ") for one in found} == {
        "--learning_rate was 5e-05, is 0.0005",
        "--max_steps was 3, is 4",
        "--per_device_train_batch_size was 4, is 2",
        f"--data_path was {data}, is {tmp_path / 'other.json'}",
    }
    manifest = json.loads((tmp_path / "out" / "run_manifest.json").read_text())
    assert len(manifest["changes"]) == 4 and len(manifest["earlier_runs"]) == 1


def test_an_unchanged_command_reports_nothing(argv: list[str], caplog: pytest.LogCaptureFixture) -> None:
    run_train(argv)
    assert "change" not in _warnings(caplog)


def test_manifest_says_what_ran(finished: Path, training_data: Path) -> None:
    for folder in (finished, finished / "checkpoint-1"):
        manifest = json.loads((folder / "run_manifest.json").read_text())
        assert "--tune_mm_mlp_adapter True" in manifest["command"]
        assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
        assert {"python", "transformers", "peft"} <= set(manifest["versions"])
        assert manifest["data"]["fingerprint"] == fingerprint([training_data / "pretrain.json"])
        assert manifest["model"]["fingerprint"].startswith("sha256:")
        assert manifest["seed"] == 42 and manifest["host"] and manifest["started"].endswith("+00:00")
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
        )
        assert manifest["git"] is None or len(manifest["git"]["revision"]) == len(head.stdout.strip()) == 40


def test_an_output_folder_that_cannot_be_written_is_named(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "out"
    with pytest.raises(
        UserError, match=f"--output_dir {out} cannot be written: a part of the path is no folder"
    ):
        run_train(flags(checkpoints, training_data, out, f"{STAGE_1} {SAVING}"))


def test_fingerprint_sees_changes(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(b"x" * 100)
    first = fingerprint([file])
    file.write_bytes(b"x" * 99 + b"y")
    assert fingerprint([file]) != first
    assert fingerprint([]) is None
    file.write_bytes(bytes(20 * 1024 * 1024))  # known by blocks
    large = fingerprint([file])
    with file.open("ab") as stream:
        stream.write(b"\0")
    assert fingerprint([file]) != large


def test_changed_content_and_versions_are_seen(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.json"
    shutil.copy(argv[argv.index("--data_path") + 1], data)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    arguments = parse_args([*argv, "--data_path", str(data)])
    before = make_manifest(*arguments)
    data.write_text(data.read_text().replace("red", "tan"))
    now = make_manifest(*arguments)
    before["versions"]["torch"] = "1.0"
    before["world_size"] = 8
    assert changes(before, now) == [
        "number of processes was 8, is 1",
        f"the content of {data} is not what it was",
        f"torch was 1.0, is {now['versions']['torch']}",
    ]


@pytest.mark.parametrize("name", ["", "{000..002}.tar", "*.tar"])
def test_changed_shards_of_a_stream_are_seen(
    name: str, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    (folder / "notes").mkdir(parents=True)  # beside the shards, no part of the data
    for number in range(3):
        (folder / f"{number:03d}.tar").write_bytes(bytes(3 << 20))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    more = ["--data_path", str(folder / name), "--streaming", "True", "--max_steps", "3"]
    arguments = parse_args([*argv, *more])
    before = make_manifest(*arguments)
    (folder / "notes" / "other").touch()
    assert before["data"]["fingerprint"] and not changes(before, make_manifest(*arguments))
    (folder / "001.tar").write_bytes(bytes(5 << 20))
    said = f"the content of {folder / name} is not what it was"
    assert changes(before, make_manifest(*arguments)) == [said]


# ---- the same numbers ----


@pytest.fixture
def nondeterministic_again() -> Iterator[None]:
    """Undo what --deterministic switches on for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_runs_have_the_same_losses(
    checkpoints: Path, training_data: Path, tmp_path: Path, nondeterministic_again: None
) -> None:
    command = f"{LORA} --deterministic True --group_by_modality_length True --save_strategy no --max_steps 4"
    command += " --dataloader_num_workers 2"
    runs = []
    for name in "ab":
        torch.manual_seed(hash(name) % 1000)  # nothing of before may matter
        runs.append(run_train(flags(checkpoints, training_data, tmp_path / name, command)))
        assert torch.are_deterministic_algorithms_enabled()
    assert runs[0].loss == runs[1].loss and runs[0].grad_norm == runs[1].grad_norm
    assert json.loads((tmp_path / "a" / "run_manifest.json").read_text())["deterministic"] is True
    other = run_train(flags(checkpoints, training_data, tmp_path / "c", f"{command} --seed 1"))
    assert other.loss != runs[0].loss


# ---- losses that are not finite ----


def _run_with_bad_losses(
    argv: list[str], steps: set[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[Run, list[torch.Tensor]]:
    """Run with a loss of nan in some steps; returns also a weight of the projector before each batch."""
    compute, weights = LLaVATrainer.compute_loss, []

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights.append(next(self.model.get_model().mm_projector.parameters()).detach().clone())
        loss = compute(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step + 1 in steps else loss

    monkeypatch.setattr(LLaVATrainer, "compute_loss", spoiled)
    return run_train(argv), weights


def test_a_loss_that_is_not_finite_stops_the_run(
    checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{STAGE_1} {SAVING}")
    monkeypatch.setattr(LLaVATrainer, "_get_train_sampler", lambda *a, **k: list(range(64)))
    with pytest.raises(UserError) as caught:
        _run_with_bad_losses(argv, {2}, monkeypatch)
    assert "the loss of step 2 is nan, in the batch of record 4 (id 'p4')" in str(caught.value)
    assert all(f"'p{number}'" in str(caught.value) for number in (4, 5, 6, 7))
    assert [one.step for one in find_checkpoints(tmp_path / "out")] == [1]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_can_be_dropped(
    accumulation: int,
    checkpoints: Path,
    training_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = f"{STAGE_1} --max_steps 4 --save_strategy no --on_nonfinite skip --learning_rate 1e-2"
    command += " --weight_decay 0.1 --lr_scheduler_type constant --warmup_ratio 0"
    command += f" --gradient_accumulation_steps {accumulation}"
    argv = flags(checkpoints, training_data, tmp_path / "out", command)
    _, weights = _run_with_bad_losses(argv, {2}, monkeypatch)
    after = weights[::accumulation]  # before steps 1, 2, 3, 4
    assert not torch.equal(after[0], after[1])
    assert torch.equal(after[1], after[2])
    assert not torch.equal(after[2], after[3]) and bool(after[3].isfinite().all())
    assert "1 step(s) were dropped (--on_nonfinite skip): 2" in _warnings(caplog)


def test_dropping_has_an_end() -> None:
    class Args:
        device = torch.device("cpu")
        fp16 = False

    class State:
        global_step = 0

    guard = NonFiniteGuard("skip")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    batch = {"labels": torch.zeros(1, 4, dtype=torch.long)}
    with pytest.raises(UserError, match=f"{MAX_IN_A_ROW} steps in a row, up to 20, had no finite loss"):
        for State.global_step in range(30):
            guard.check(torch.tensor(math.inf), batch, [], State.global_step + 1)
            guard.on_pre_optimizer_step(Args(), State(), None, optimizer=optimizer)
    assert guard.dropped == list(range(1, 21))


TWO_PROCESSES = """
import torch
import torch.distributed as dist
from types import SimpleNamespace as Namespace
from llava.train.callbacks.nonfinite import NonFiniteGuard

dist.init_process_group("gloo")
guard, weight = NonFiniteGuard("skip"), torch.nn.Parameter(torch.ones(1))
optimizer, args = torch.optim.SGD([weight], 0.1), Namespace(device=torch.device("cpu"), fp16=False)
batch = {"labels": torch.zeros(1, 4, dtype=torch.long)}
for step, dropped in ((1, False), (2, True), (3, False)):
    weight.grad = torch.ones(1)
    bad = step == 2 and dist.get_rank() == 1
    guard.check(torch.tensor(float("nan") if bad else 1.0), batch, ["f3"], step)
    guard.on_pre_optimizer_step(args, Namespace(global_step=step - 1), None, optimizer=optimizer)
    assert (weight.grad is None) == dropped, (step, dist.get_rank())
assert guard.dropped == [2]
"""


@pytest.mark.slow
def test_all_processes_drop_the_same_step(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launcher = [python(), "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    run_group([*launcher, "--master_port", str(free_port()), str(script)], 120)


def test_samples_of_a_stream_bring_their_names() -> None:
    collate = NamedBatches(lambda instances: {"count": len(instances)})
    assert collate([{SAMPLE_KEY: "0.tar: f3"}, {SAMPLE_KEY: 7}, {}]) == {
        "count": 3,
        BATCH_KEY: ["0.tar: f3", 7],
    }
    assert collate([{}]) == {"count": 1}
    batch = {"labels": torch.zeros(1, 4, dtype=torch.long)}
    with pytest.raises(UserError, match="the loss of step 9 is inf, in the batch of 0.tar: f3, 7;"):
        NonFiniteGuard("error").check(torch.tensor(math.inf), batch, ["0.tar: f3", 7], 9)


def test_a_batch_without_labels_is_no_fault(
    checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"{STAGE_1} --max_steps 3 --save_strategy no --learning_rate 1e-2 --max_lost_samples 1"
    step = LLaVATrainer.training_step

    def without_labels(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 1:
            inputs["labels"].fill_(-100)
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LLaVATrainer, "training_step", without_labels)
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", command))
    assert len(run.loss) == 3
    assert all(
        bool(value.isfinite().all()) for value in read_tensors(tmp_path / "out/mm_projector.bin").values()
    )


def test_skip_is_refused_where_it_cannot_be_done(training_data: Path, tmp_path: Path) -> None:
    config = tmp_path / "zero2.json"
    config.write_text(
        json.dumps({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"})
    )
    argv = ["--data_path", str(training_data / "pretrain.json"), "--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match="--on_nonfinite skip is not possible with --deepspeed"):
        parse_args([*argv, "--on_nonfinite", "skip", "--deepspeed", str(config), "--use_cpu", "True"])
    with pytest.raises(UserError, match="--on_nonfinite is 'ignore'; expected one of error, skip"):
        parse_args([*argv, "--on_nonfinite", "ignore"])
