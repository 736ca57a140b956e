"""Going on with other flags than before: those that count, and those with which it is impossible."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train
from warming import python

from llava.model.checkpoints.files import CheckpointError
from llava.train.checkpointing.claim import LOCK_FILE
from llava.train.checkpointing.manifest import other_shards, other_weights, whose_weights
from llava.utils import UserError

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
LORA = (
    f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} --lora_enable True "
    "--lora_r 4 --learning_rate 1e-3 --mm_projector_lr 1e-4 --lr_scheduler_type linear --warmup_ratio 0"
)
STEPS = "--save_strategy steps --save_steps 2 --max_steps 4"


@pytest.fixture(scope="module")
def stopped(checkpoints: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that ended after two of its four steps; copy it before writing."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    run_train(flags(checkpoints, training_data, out, f"{LORA} {STEPS}"), steps=2)
    assert (out / "checkpoint-2").is_dir()
    return out


@pytest.fixture
def argv(stopped: Path, checkpoints: Path, training_data: Path, tmp_path: Path) -> list[str]:
    """Return the command line of `stopped`, for a copy of its folder."""
    shutil.copytree(stopped, tmp_path / "out")
    return flags(checkpoints, training_data, tmp_path / "out", f"{LORA} {STEPS}")


def test_a_second_run_is_kept_out_of_the_folder(argv: list[str], tmp_path: Path) -> None:
    """Another process holds the folder; when it is killed the folder is free again."""
    out = tmp_path / "out"
    code = "import os; from pathlib import Path; from llava.train.checkpointing.claim import OutputLock; "
    code += f"lock = OutputLock(Path({str(out)!r})); print('held', os.getpid(), flush=True); input()"
    with subprocess.Popen(
        [python(), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        held, process = other.stdout.readline().split()
        assert held == "held"
        (out / "tmp-checkpoint-4").mkdir()  # that the other run is writing
        with pytest.raises(UserError, match=f"another run is writing to {out}"):
            run_train(argv)
        assert (out / "tmp-checkpoint-4").is_dir()
        os.kill(int(process), signal.SIGKILL)
    assert (out / LOCK_FILE).exists()
    assert len(run_train(argv).loss) == 2
    assert not (out / LOCK_FILE).exists()


def test_changed_rates_and_decay_count(argv: list[str], tmp_path: Path) -> None:
    more = (
        "--learning_rate 8e-3 --mm_projector_lr 4e-4 --weight_decay 0.25 --adam_beta2 0.9 --logging_steps 1"
    )
    run = run_train([*argv, *more.split()])
    groups: list[dict[str, Any]] = run.trainer.optimizer.param_groups
    assert sorted({group["initial_lr"] for group in groups}) == [4e-4, 8e-3]
    assert {group["weight_decay"] for group in groups} == {0, 0.25}
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.9)}
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    rates = {one["step"]: one["learning_rate"] for one in history if "learning_rate" in one}
    assert [rates[3], rates[4]] == pytest.approx([8e-3 * 2 / 4, 8e-3 * 1 / 4])  # a line down to 0


def test_more_steps_continue_the_longer_schedule(argv: list[str], tmp_path: Path) -> None:
    """The checkpoint may stand at the end of its schedule, where the rate is 0."""
    run_train([*argv, "--max_steps", "3", "--save_steps", "1"])
    run_train([*argv, "--max_steps", "6", "--save_steps", "1", "--logging_steps", "1"])
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    rates = {one["step"]: one["learning_rate"] for one in history if "learning_rate" in one}
    assert [rates[step] for step in (4, 5, 6)] == pytest.approx([1e-3 * left / 6 for left in (3, 2, 1)])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--lora_enable False", "--lora_enable was true, is false"),
        ("--lora_r 8", "--lora_r was 4, is 8"),
        ("--freeze_mm_mlp_adapter True", "--freeze_mm_mlp_adapter was false, is true"),
        ("--unfreeze_mm_vision_tower True", "--unfreeze_mm_vision_tower was false, is true"),
    ],
)
def test_other_weights_are_refused_before_anything_is_loaded(
    more: str, said: str, argv: list[str], tmp_path: Path
) -> None:
    before = (tmp_path / "out" / "run_manifest.json").read_text()
    with pytest.raises(CheckpointError, match="trained other weights: ") as error:
        run_train([*argv, *more.split()])
    assert said in str(error.value) and "--resume never" in str(error.value)
    assert (tmp_path / "out" / "run_manifest.json").read_text() == before


def test_a_rate_of_its_own_makes_other_groups() -> None:
    none, one, two = (
        {"settings": {"model": {}, "training": {"mm_projector_lr": rate, "seed": 1}}}
        for rate in (None, 1e-4, 0)
    )
    assert other_weights(none, one) == ["--mm_projector_lr was null, is 0.0001"]
    assert other_weights(one, two) == other_weights({}, one) == []


def test_states_in_other_shards_are_refused(argv: list[str], tmp_path: Path) -> None:
    file = tmp_path / "out" / "checkpoint-2" / "run_manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["sharding"] == "none"
    file.write_text(json.dumps({**manifest, "sharding": "ZeRO-2"}))
    sizes = tmp_path / "out" / "checkpoint-2" / "checkpoint_files.json"
    sizes.unlink()  # or the edited file would count as damaged
    with pytest.raises(CheckpointError, match="its sharding was ZeRO-2, is none"):
        run_train(argv)


@pytest.mark.parametrize(
    ("sharding", "processes", "fits"),
    [("ZeRO-2", 4, True), ("ZeRO-2", 2, False), ("ZeRO-3", 2, False), ("none", 2, True), ("FSDP", 2, True)],
)
def test_only_deepspeed_is_bound_to_its_number_of_processes(
    sharding: str, processes: int, fits: bool
) -> None:
    before, now = ({"sharding": sharding, "world_size": size} for size in (4, processes))
    assert (other_shards(before, now) == "") is fits


@pytest.mark.parametrize(
    ("name", "state"),
    [("optimizer.pt", [1]), ("optimizer.pt", {}), ("scheduler.pt", "text"), ("rng_state.pth", {}),
     ("rng_state.pth", {"python": 1})],
)  # fmt: skip
def test_states_of_another_kind_are_one_sentence(
    name: str, state: object, argv: list[str], tmp_path: Path
) -> None:
    """The file is whole, and has no checksum that could tell."""
    checkpoint = tmp_path / "out" / "checkpoint-2"
    (checkpoint / "checkpoint_files.json").unlink()
    torch.save(state, checkpoint / name)
    with pytest.raises(CheckpointError) as caught:
        run_train(argv)
    text = str(caught.value)
    what = "the random numbers" if name.startswith("rng") else "the optimizer or of its schedule"
    assert f"{checkpoint} cannot be resumed: the state of {what} cannot be loaded" in text
    assert "\n" not in text and "--resume never" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "all weights are those of c, none of new is used"),
        (
            {"lora_enable": True},
            "adapters and projector are those of c, trained with old; the LLM is that of new",
        ),
        (
            {"tune_mm_mlp_adapter": True},
            "the projector is that of c, trained with old; the LLM is that of new",
        ),
        ({"tune_mm_mlp_adapter": True, "unfreeze_mm_vision_tower": True}, "all weights are those of c"),
    ],
)
def test_another_model_says_which_weights_are_used(settings: dict[str, bool], said: str) -> None:
    now = {"model": {"path": "new"}, "settings": {"model": {}, "training": settings}}
    assert whose_weights({"model": {"path": "old"}}, now, Path("c")).startswith(said)
    assert (
        whose_weights({"model": {"path": "new"}}, now, Path("c")) == whose_weights({}, now, Path("c")) == ""
    )


def test_a_resumed_run_with_another_model_says_so(
    argv: list[str], checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoints / "vicuna-tiny", other)
    run_train([*argv, "--model_name_or_path", str(other)])
    assert f"trained with {checkpoints / 'vicuna-tiny'}; the LLM is that of {other}" in caplog.text


def test_an_unknown_template_of_a_checkpoint_is_said(
    checkpoints: Path, training_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "llava-tiny-v1.5"
    shutil.copytree(checkpoints / "llava-tiny-v1.5", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "conv_template": "made_elsewhere"}))
    more = f"{LORA} --max_steps 1 --save_strategy no --model_name_or_path {base}"
    run_train(flags(checkpoints, training_data, tmp_path / "out", more), steps=0)
    said = "config.conv_template is 'made_elsewhere', which is no template here; using v1"
    assert sum(said in record.getMessage() for record in caplog.records) == 1
