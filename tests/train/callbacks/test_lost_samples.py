"""Samples in which nothing is trained on: counted once, named, listed, and too many stop the run."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from recorded_training import Run, flags, run_train

from llava.conversation import conv_templates
from llava.model.tokenizer import load_tokenizer
from llava.train.callbacks.unsupervised import LOST_KEY, REPORT_FILE, LostSampleNames, LostSamples
from llava.train.labels.preprocess import preprocess
from llava.utils import UserError

LOST = {5, 40}
COMMAND = (
    "--version v1 --data_path {lost} --mm_projector_type mlp2x_gelu --save_strategy no "
    "--tune_mm_mlp_adapter True "
)


@pytest.fixture(scope="module")
def lost_data(training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The instruction data with two conversations that confuse the reference's counts."""
    records = json.loads((training_data / "finetune.json").read_text())
    for index in LOST:
        records[index]["conversations"][1]["value"] = "The mark </s> ends a turn."
    path = tmp_path_factory.mktemp("lost") / "data.json"
    path.write_text(json.dumps(records))
    return path


def _run(checkpoints: Path, training_data: Path, lost_data: Path, out: Path, more: str, **how: object) -> Run:
    command = COMMAND.replace("{lost}", str(lost_data)) + more
    return run_train(flags(checkpoints, training_data, out, command), **how)  # type: ignore[arg-type]


def test_each_is_counted_once_and_listed(
    checkpoints: Path,
    training_data: Path,
    lost_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two epochs and two loader workers read each of them twice."""
    with caplog.at_level(logging.WARNING, logger="llava"):
        more = "--num_train_epochs 2 --dataloader_num_workers 2 --max_lost_samples 0.05"
        run = _run(checkpoints, training_data, lost_data, tmp_path, more)
    assert set(run.trainer.lost.names) == LOST
    listed = [record.message for record in caplog.records if "nothing was trained on" in record.message]
    assert len(listed) == 1 and "in 2 of 64 sample(s)" in listed[0]
    assert [one for one in caplog.messages if "record 40 (id 'f40')" in one] == listed  # no second report
    assert "record 5 (id 'f5')" in listed[0] and "record 40 (id 'f40')" in listed[0]
    report = json.loads((tmp_path / REPORT_FILE).read_text())
    assert {one["sample"] for one in report["samples"]} == LOST


def test_too_many_stop_the_run(
    checkpoints: Path, training_data: Path, lost_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"nothing is trained on in 1 of the run's 64 samples.*record 40"):
        _run(checkpoints, training_data, lost_data, tmp_path, "", order=[0, 1, 3, 40, *range(60)])


def test_spans_lose_none(checkpoints: Path, training_data: Path, lost_data: Path, tmp_path: Path) -> None:
    run = _run(checkpoints, training_data, lost_data, tmp_path, "--label_masks spans", order=[5, 40] * 4)
    assert not run.trainer.lost.names and not (tmp_path / REPORT_FILE).exists()


def test_batch_without_labels_leaves_the_run_intact(
    checkpoints: Path, training_data: Path, lost_data: Path, tmp_path: Path
) -> None:
    more = "--per_device_train_batch_size 2 --max_lost_samples 1 --max_steps 3"
    run = _run(checkpoints, training_data, lost_data, tmp_path, more, order=[0, 1, 5, 40, 3, 4])
    assert [math.isfinite(loss) for loss in run.loss] == [True, False, True]
    assert run.grad_norm[1] == 0
    assert all(bool(param.isfinite().all()) for param in run.trainer.model.parameters())


@pytest.mark.parametrize("texts", [0, 2])
def test_answers_that_image_tokens_push_out_count(
    texts: int, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """Before they become 16 tokens each, images leave room for the answers; a batch of such has no loss."""
    question = {"from": "human", "value": "<image>\nWhat is it?"}
    turns = [question, {"from": "gpt", "value": "A cat."}]
    tokenizer = load_tokenizer(checkpoints / "vicuna-tiny")
    limit = len(preprocess([turns], tokenizer, True, conv_templates["v1"])["input_ids"][0])
    seen = {"image": "pic_000.png", "conversations": turns}
    read = {"conversations": [{**question, "value": "What?"}, turns[1]]}
    (tmp_path / "data.json").write_text(json.dumps([seen, seen, *[read] * texts]))
    more = f"--model_max_length {limit} --max_lost_samples 1 --max_steps 1"
    run = _run(checkpoints, training_data, tmp_path / "data.json", tmp_path / "out", more)
    assert set(run.trainer.lost.names) == {0, 1}
    assert all(bool(param.isfinite().all()) for param in run.trainer.model.parameters())


def test_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    args = SimpleNamespace(
        train_batch_size=1,
        gradient_accumulation_steps=1,
        world_size=1,
        output_dir=str(tmp_path),
        device=torch.device("cpu"),
    )
    first = LostSamples(1.0, range(100))
    first.on_train_begin(args, SimpleNamespace(max_steps=100, global_step=0), None)
    first.note({LOST_KEY: [7]})
    first.on_step_end(args, SimpleNamespace(is_world_process_zero=True), None)
    second = LostSamples(0.01, range(100))
    second.on_train_begin(args, SimpleNamespace(max_steps=100, global_step=50), None)
    second.note({LOST_KEY: [7]})
    second.on_step_end(args, SimpleNamespace(is_world_process_zero=True), None)  # not new
    second.note({LOST_KEY: [8]})
    with pytest.raises(UserError, match="in 2 of the run's 100"):
        second.on_step_end(args, SimpleNamespace(is_world_process_zero=True), None)
    fresh = LostSamples(0.01, range(100))
    fresh.on_train_begin(args, SimpleNamespace(max_steps=100, global_step=0), None)
    assert not fresh.names


def test_labels_that_are_cut_off_do_not_count() -> None:
    ids = torch.arange(1, 6)
    late = {"input_ids": ids, "labels": torch.tensor([-100, -100, -100, 4, 5])}
    collate = LostSampleNames(lambda instances: {"n": len(instances)}, 3)
    assert len(collate([late, late])[LOST_KEY]) == 2
    assert LostSampleNames(lambda instances: {}, None)([late])[LOST_KEY] == []


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    args = SimpleNamespace(
        train_batch_size=1,
        gradient_accumulation_steps=1,
        world_size=2,
        output_dir=folder,
        device=torch.device("cpu"),
    )
    state = SimpleNamespace(max_steps=50, global_step=0, is_world_process_zero=rank == 0)
    lost = LostSamples(0.03, range(100))
    lost.on_train_begin(args, state, None)
    for step in range(3):
        lost.note({LOST_KEY: [[1, 2][rank], 3] if step != 1 else []})
        lost.on_step_end(args, state, None)
        assert set(lost.names) == {1, 2, 3}
    lost.note({LOST_KEY: [9] if rank else []})
    with pytest.raises(UserError, match="in 4 of the run's 100"):  # on both ranks
        lost.on_step_end(args, state, None)
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    assert len(json.loads((tmp_path / REPORT_FILE).read_text())["samples"]) == 4
