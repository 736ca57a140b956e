"""--eval_tasks: scores in the log, and a run whose weights and losses are to the bit those without it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from recorded_training import Run, flags, run_train
from test_evaluation import CHAT

from llava.utils import UserError

STEPS = "--max_steps 4 --logging_steps 1 --mm_projector_lr 1e-3"
LORA = "--lora_enable True --lora_r 4 --lora_alpha 8 --lora_dropout 0.5"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions, one of them without an image."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "images").mkdir()
    questions = []
    for number in range(4):
        Image.new("RGB", (30, 20), (number * 60, 90, 20)).save(folder / "images" / f"{number}.png")
        images = [f"{number}.png"] if number else []
        questions.append(
            {"id": number, "kind": "k", "images": images, "question": f"Is it {number}?", "answer": "yes"}
        )
    (folder / "test.json").write_text(json.dumps(questions))
    return folder


def _trained(run: Run) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    return losses, {name: value.clone() for name, value in run.trainer.model.named_parameters()}


def _logged(run: Run) -> list[dict[str, Any]]:
    return [entry for entry in run.trainer.state.log_history if "eval_digits_accuracy" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", LORA, "--gradient_checkpointing True"], ids=["whole", "lora", "gc"])
def test_a_run_that_is_asked_trains_to_the_same_bits(
    extra: str, digits: Path, training_data: Path, checkpoints: Path, tmp_path: Path
) -> None:
    asked = f"--eval_tasks digits --eval_tasks_data {digits} --eval_tasks_steps 1"
    with_it = run_train(flags(checkpoints, training_data, tmp_path / "a", f"{CHAT} {STEPS} {extra} {asked}"))
    losses, weights = _trained(with_it)
    logged = _logged(with_it)
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4]
    assert all(0 <= entry["eval_digits_accuracy"] <= 100 for entry in logged)
    without = run_train(flags(checkpoints, training_data, tmp_path / "b", f"{CHAT} {STEPS} {extra}"))
    plain_losses, plain_weights = _trained(without)
    assert losses == plain_losses and len(losses) == 4
    assert weights.keys() == plain_weights.keys()
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)
    assert not _logged(without)


@pytest.mark.slow
def test_by_default_it_is_asked_at_the_end(
    digits: Path, training_data: Path, checkpoints: Path, tmp_path: Path
) -> None:
    asked = f"--eval_tasks digits --eval_tasks_data {digits} --eval_tasks_limit 2"
    run = run_train(flags(checkpoints, training_data, tmp_path, f"{CHAT} {STEPS} {asked}"))
    assert [entry["step"] for entry in _logged(run)] == [4]
    assert run.trainer.model.training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--eval_tasks digit", "did you mean digits"),
        ("--eval_tasks digits --eval_tasks_data /none", "there is no /none/"),
        ("--eval_tasks digits --eval_tasks_data {digits} --eval_tasks_steps -1", "--eval_tasks_steps is -1"),
        ("--eval_tasks digits --eval_tasks_data {digits} --eval_tasks_limit 0", "--eval_tasks_limit is 0"),
    ],
)
def test_what_cannot_be_asked_is_told_before_the_model_is_loaded(
    words: str, message: str, digits: Path, training_data: Path, checkpoints: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run_train(
            flags(checkpoints, training_data, tmp_path, f"{CHAT} {STEPS} {words.format(digits=digits)}")
        )
