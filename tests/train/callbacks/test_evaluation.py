"""Evaluation while training: what is held out, a loss that no batch size changes, losses by modality."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recorded_training import Run, flags, run_train

from llava.train.args import parse_args
from llava.train.callbacks.evaluation import LossMeter, losses_of_rows
from llava.train.data.table import load_records
from llava.train.records import DataError
from llava.utils import UserError

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = (
    f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} "
    "--pretrain_mm_mlp_adapter {ck}/llava-tiny-pretrain/mm_projector.bin --save_strategy no"
)
TEXTS = [2, 5, 8, 11]  # samples without image
IMAGES = [0, 1, 3, 4]


def _history(run: Run, key: str) -> list[float]:
    return [entry[key] for entry in run.trainer.state.log_history if key in entry]


# ---- what is held out ----


def _rows(table: Any) -> list[str]:
    return [table.text(index) for index in range(len(table))]


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5])
def test_split_is_disjoint_whole_and_the_same_each_time(fraction: float, training_data: Path) -> None:
    table = load_records(training_data / "finetune.json")
    rest, held = table.split(fraction)
    assert len(held) == max(1, round(fraction * 64))
    assert not set(_rows(rest)) & set(_rows(held))
    assert sorted(_rows(rest) + _rows(held)) == sorted(_rows(table))
    assert _rows(table.split(fraction)[1]) == _rows(held)
    assert held.name(0).startswith("record ") and json.loads(_rows(held)[0])["id"] in held.name(0)
    assert len(rest.words) == len(rest) and len(held.with_images) == len(held)


def test_split_of_a_mixture_holds_no_repeated_record_on_both_sides(
    training_data: Path, tmp_path: Path
) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        f"- path: {training_data}/finetune.json\n  weight: 2.5\n"
        f"- path: {training_data}/pretrain.json\n  max_samples: 20\n"
    )
    rest, held = load_records(mixture).split(0.25)
    assert not set(_rows(rest)) & set(_rows(held))
    assert len(set(_rows(held))) == len(held) == 21  # of 64 + 20
    counts = np.unique(_rows(rest), return_counts=True)[1]
    assert counts.max() == 3 and counts.min() == 1


def test_split_holds_no_record_on_both_sides_that_two_entries_use(
    training_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.json").symlink_to(training_data / "finetune.json")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        f"- {{json_path: {training_data}/finetune.json, sampling_strategy: first:60%}}\n"
        f'- {{json_path: "{training_data}/{{pretrain,finetune}}.json", sampling_strategy: end:60}}\n'
        f"- {{json_path: link.json, sampling_strategy: random:50%, weight: 1.5}}\n"
    )
    table = load_records(mixture)
    rest, held = table.split(0.25)
    assert not set(_rows(rest)) & set(_rows(held)) and set(_rows(rest)) | set(_rows(held)) == set(
        _rows(table)
    )
    assert len(_rows(held)) == len(set(_rows(held))) == round(len(set(_rows(table))) / 4)
    assert len(rest.words) == len(rest) and rest.name(len(rest) - 1)


def test_nothing_left_to_train_on_is_refused(training_data: Path) -> None:
    with pytest.raises(DataError, match="none is left"):
        load_records(training_data / "finetune.json").split(0.999)


def test_data_that_is_missing_is_named_with_its_own_flag(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    for name in ("gone.json", "{gone,lost}.json", "*.json"):
        argv = flags(checkpoints, training_data, tmp_path / "out", CHAT)
        with pytest.raises(UserError, match="check --eval_data_path$"):
            run_train([*argv, "--eval_data_path", str(tmp_path / name)])


# ---- losses ----


def test_meter_sums_by_modality() -> None:
    meter = LossMeter()
    same = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, reduction: value)
    meter.add(torch.tensor([True, False]), torch.tensor([6.0, 1.0]), torch.tensor([3.0, 1.0]))
    meter.add(torch.tensor([True, True]), torch.tensor([0.0, 4.0]), torch.tensor([0.0, 2.0]))
    assert meter.read(same) == {"loss": 11 / 6, "loss_text": 1.0, "loss_image": 2.0}
    assert meter.read(same) == {}
    meter.add(torch.tensor([True, False]), torch.tensor([math.nan, 1.0]), torch.tensor([3.0, 1.0]))
    found = meter.read(same, prefix="eval_")
    assert found["eval_loss_text"] == 1.0 and math.isnan(found["eval_loss_image"])


def test_losses_of_rows_add_up_to_the_mean() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    labels[0, 3:] = labels[2] = -100
    sums, counts = losses_of_rows(logits, labels)
    assert counts.tolist() == [2, 6, 0]
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(sums.sum() / counts.sum(), expected)


def _evaluated(
    checkpoints: Path, data: Path, out: Path, more: str, base: str = "vicuna-tiny"
) -> dict[str, float]:
    command = f"{CHAT} --eval_data_path {{data}}/finetune.json --max_steps 1 --learning_rate 0 {more}"
    run = run_train(flags(checkpoints, data, out, command, base=base))
    return next(entry for entry in run.trainer.state.log_history if "eval_loss" in entry)


def test_eval_loss_does_not_depend_on_the_batch_size(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """The numbers are those of the model one sample at a time."""
    sizes = (1, 5, 64)
    found = [
        _evaluated(checkpoints, training_data, tmp_path / str(n), f"--per_device_eval_batch_size {n}")
        for n in sizes
    ]
    for entry in found[1:]:
        for key in ("eval_loss", "eval_loss_text", "eval_loss_image"):
            assert entry[key] == pytest.approx(found[0][key], rel=1e-5)
    by_sample = _sample_by_sample(checkpoints, training_data, tmp_path / "one")
    for key, modality in (("eval_loss", None), ("eval_loss_text", False), ("eval_loss_image", True)):
        rows = [(s, c) for s, c, image in by_sample if modality is None or image == modality]
        assert found[0][key] == pytest.approx(sum(s for s, _ in rows) / sum(c for _, c in rows), rel=1e-5)
    losses = [s / c for s, c, _ in by_sample]
    assert found[0]["eval_loss"] != pytest.approx(np.mean(losses), rel=1e-4)  # weighted by tokens


def _sample_by_sample(checkpoints: Path, data: Path, out: Path) -> list[tuple[float, int, bool]]:
    run = run_train(flags(checkpoints, data, out, f"{CHAT} --max_steps 1 --learning_rate 0"))
    trainer = run.trainer
    found = []
    model = trainer.model.eval()
    for sample in _samples(trainer):
        batch = trainer.data_collator([sample])
        count = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            loss = float(model(**batch).loss)
        found.append((loss * count, count, bool((batch["input_ids"] == -200).any())))
    return found


def _samples(trainer: Any) -> list[Any]:
    return [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]


@pytest.mark.parametrize("more", ["--lora_enable True --lora_r 4", "--bf16 True", "--packing True"])
def test_other_ways_of_training_evaluate_as_well(
    more: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """LoRA starts from the same function, bfloat16 is near it."""
    plain = _evaluated(checkpoints, training_data, tmp_path / "plain", "")
    other = _evaluated(checkpoints, training_data, tmp_path / "llava-lora", more)
    near = 2e-2 if "bf16" in more else 1e-4
    for key in ("eval_loss", "eval_loss_text", "eval_loss_image"):
        assert other[key] == pytest.approx(plain[key], rel=near)


def test_text_models_evaluate(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    records = json.loads((training_data / "finetune.json").read_text())
    (tmp_path / "texts.json").write_text(json.dumps([one for one in records if "image" not in one]))
    found = []
    for size in (1, 6):
        command = (
            f"--version v1 --data_path {tmp_path}/texts.json --eval_data_path {tmp_path}/texts.json "
            f"--max_steps 2 --learning_rate 0 --per_device_eval_batch_size {size} --save_strategy no"
        )
        argv = flags(checkpoints, training_data, tmp_path / "out", command)
        place = argv.index("--vision_tower")
        run = run_train(argv[:place] + argv[place + 2 :])
        found.append(next(entry for entry in run.trainer.state.log_history if "eval_loss" in entry))
        assert len(_history(run, "loss_text")) == 2 and not _history(run, "loss_image")
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], rel=1e-5)
    assert found[0]["eval_loss_text"] == found[0]["eval_loss"] and "eval_loss_image" not in found[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_losses_by_modality_are_token_weighted(
    accumulate: int, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """Batches of mixed modality; the weights do not change, so that each loss can be computed again."""
    order = [0, 2, 1, 5, 3, 8, 4, 11]
    command = f"{CHAT} --learning_rate 0 --per_device_train_batch_size 2 --max_steps {4 // accumulate}"
    more = f"{command} --gradient_accumulation_steps {accumulate}"
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", more), order=order)
    by_sample = _sample_by_sample(checkpoints, training_data, tmp_path / "again")
    width = 2 * accumulate
    for step, start in enumerate(range(0, len(order), width)):
        rows = [by_sample[index] for index in order[start : start + width]]
        for key, image in (("loss_text", False), ("loss_image", True)):
            own = [(s, c) for s, c, of in rows if of == image]
            expected = sum(s for s, _ in own) / sum(c for _, c in own)
            assert _history(run, key)[step] == pytest.approx(expected, rel=1e-5)


def test_logged_losses_cover_all_steps_since_the_last_entry(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    command = f"{CHAT} --learning_rate 0 --max_steps 2 --logging_steps 2"
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", command), order=TEXTS + IMAGES)
    assert len(_history(run, "loss")) == len(_history(run, "loss_text")) == 1
    text, image = _history(run, "loss_text")[0], _history(run, "loss_image")[0]
    assert _history(run, "loss")[0] == pytest.approx((text + image) / 2, rel=1e-5)  # a step of each


# ---- flags, files ----


def test_split_evaluates_on_what_does_not_train(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = f"{CHAT} --learning_rate 1e-3 --eval_split 0.1 --eval_strategy steps --eval_steps 5"
    run = run_train(flags(checkpoints, training_data, out, f"{command} --report_to tensorboard"))
    assert len(run.trainer.train_dataset) == 58 and len(run.trainer.eval_dataset) == 6
    losses = _history(run, "eval_loss")
    assert len(losses) == 3 and losses[-1] < losses[0]
    state = json.loads((out / "trainer_state.json").read_text())
    assert [e["eval_loss"] for e in state["log_history"] if "eval_loss" in e] == losses
    assert (out / "loss_curve.png").stat().st_size > 10_000


def test_tensorboard_gets_the_losses(
    checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # put back after --logging_dir has set it
    command = f"{CHAT} --learning_rate 1e-3 --eval_split 0.1 --max_steps 2 --report_to tensorboard"
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{command} --logging_dir {tmp_path}/events")
    run = run_train(argv, order=[0, 2, 3, 5] * 2)
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    keys = {"train/loss": "loss", "train/loss_text": "loss_text", "train/loss_image": "loss_image"}
    keys |= {"eval/loss": "eval_loss", "eval/loss_image": "eval_loss_image"}
    for tag, key in keys.items():
        assert [one.value for one in events.Scalars(tag)] == pytest.approx(_history(run, key), rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--eval_split 1.0", "expected a number from 0 below 1"),
        ("--eval_split 0.1 --eval_data_path y.json", "give one of them"),
        ("--eval_split 0.1 --streaming True --max_steps 3", "a part of a stream"),
        ("--eval_strategy steps --eval_steps 5", "needs something to evaluate on"),
    ],
)
def test_contradicting_flags_are_refused(more: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_args(["--data_path", "x.json", "--output_dir", "out", *more.split()])


def test_evaluates_after_each_epoch_unless_told_otherwise() -> None:
    common = ["--data_path", "x.json", "--output_dir", "out", "--evaluation_strategy", "no"]
    assert parse_args([*common, "--eval_split", "0.1"])[2].eval_strategy.value == "epoch"
    assert parse_args(common)[2].eval_strategy.value == "no"
