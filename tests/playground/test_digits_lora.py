"""The quickstart's LoRA variant: what it trains, reuses, reports, and how its recipe was chosen."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.train.args import parse_args
from playground.digits import choose_lora, evaluate, merged, quickstart, table, training
from playground.digits import data as data_module
from playground.digits.images import load_halves
from playground.digits.questions import KINDS

COUNTS = {kind: 899 for kind in KINDS}


def _flags(words: list[str]) -> dict[str, str]:
    return dict(zip(words[2::2], words[3::2], strict=True))


# ---- what it trains ----


def test_lora_differs_from_the_full_stage_only_in_what_trains(tmp_path: Path) -> None:
    full = _flags(training.command("finetune", tmp_path, "cpu"))
    lora = _flags(training.command("lora", tmp_path, "cpu"))
    changed = {name for name in full | lora if full.get(name) != lora.get(name)}
    own = {"--lora_enable", "--lora_r", "--lora_alpha", "--mm_projector_lr"}
    assert own <= changed <= own | {"--learning_rate", "--output_dir"}
    model_args, _, training_args = parse_args([word for pair in lora.items() for word in pair])
    assert training_args.lora_enable and not training_args.freeze_mm_mlp_adapter
    assert not model_args.unfreeze_mm_vision_tower  # as in the reference: adapters and projector


def test_changed_flags_win(tmp_path: Path) -> None:
    words = training.command("lora", tmp_path, "cpu", {"lora_r": "4", "output_dir": "elsewhere"})
    assert _flags(words)["--lora_r"] == "4" and _flags(words)["--output_dir"] == "elsewhere"
    assert words.count("--lora_r") == 1


def test_the_recipe_is_one_of_the_measured_candidates() -> None:
    stage = training.STAGES["lora"]
    recipe = tuple(stage[name] for name in ("lora_r", "lora_alpha", "learning_rate", "mm_projector_lr"))
    assert recipe in choose_lora.CANDIDATES


# ---- how the recipe was chosen ----


def test_candidates_are_measured_on_the_training_half_only() -> None:
    fit, asked = choose_lora.split_training_half()
    half, _ = load_halves()
    assert np.array_equal(np.concatenate([fit.ink, asked.ink]), half.ink)
    assert np.array_equal(np.concatenate([fit.labels, asked.labels]), half.labels)
    assert asked.first == len(fit.labels) and len(asked.labels) >= 150


def test_data_of_the_choice_keeps_what_is_asked_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "VARIANTS", 0)
    monkeypatch.setattr(data_module, "PAIRS", 20)
    fit, asked = choose_lora.split_training_half()
    data_module.make_data(tmp_path, (fit, asked))
    indices: dict[str, set[int]] = {"train": set(), "test": set()}
    for part in indices:
        indices[part] = {int(path.stem) for path in (tmp_path / "images" / part).glob("*.png")}
    assert indices["train"] == set(range(asked.first))
    assert indices["test"] == set(range(asked.first, len(load_halves()[0].labels)))
    questions = json.loads((tmp_path / "test.json").read_text())
    assert sum(one["kind"] == "which_digit" for one in questions) == len(asked.labels)


# ---- steps and report ----


def _outcome(which_digit: float, reached: bool) -> dict[str, Any]:
    return {
        "accuracy": {kind: which_digit for kind in KINDS},
        "n": COUNTS,
        "svc_accuracy": 0.9689,
        "reached": reached,
    }


def _run(
    work: Path, monkeypatch: pytest.MonkeyPatch, *more: str, outcome: dict[str, Any] | None = None
) -> list[str]:
    """Run the quickstart with steps that only note that they ran; returns the notes."""
    ran: list[str] = []
    monkeypatch.setattr(quickstart, "make_data_and_models", lambda work: ran.append("data"))
    monkeypatch.setattr(quickstart, "train", lambda stage, work, device: ran.append(stage))

    def evaluated(work: Path, device: str, variant: quickstart.Variant) -> dict[str, Any]:
        ran.append(variant.evaluate)
        return outcome or _outcome(0.98, True)

    def exported(work: Path, variant: quickstart.Variant) -> dict[str, Any]:
        ran.append("export")
        return {"same_answers": 100, "of": 100}

    monkeypatch.setattr(quickstart, "evaluate", evaluated)
    monkeypatch.setattr(quickstart, "export_model", exported)
    quickstart.main(quickstart.build_parser().parse_args(["--output", str(work), *more]))
    return ran


def test_lora_reuses_all_but_its_own_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path, monkeypatch, "--fresh") == ["data", "pretrain", "finetune", "evaluate", "export"]
    full = (tmp_path / "result.json").read_bytes()
    assert _run(tmp_path, monkeypatch, "--lora") == ["lora", "evaluate-lora"]
    assert _run(tmp_path, monkeypatch) == [] == _run(tmp_path, monkeypatch, "--lora")
    result = json.loads((tmp_path / "result-lora.json").read_text())
    assert set(result["seconds"]) == {"setup", "data", "pretrain", "lora", "evaluate-lora", "total"}
    assert (tmp_path / "result.json").read_bytes() == full
    assert "llava-digits-lora" in capsys.readouterr().out


def test_lora_alone_makes_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _run(tmp_path, monkeypatch, "--lora")
    assert ran == ["data", "pretrain", "lora", "evaluate-lora"]


@pytest.mark.parametrize("more", [(), ("--lora",)])
def test_a_missed_bar_is_exit_code_1(
    more: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):  # also when everything is reused
        with pytest.raises(SystemExit) as caught:
            _run(tmp_path, monkeypatch, *more, outcome=_outcome(0.9644, False))
        assert caught.value.code not in (0, None)
        assert "bar MISSED: which digit 0.9644, to be above the SVC's 0.9689" in capsys.readouterr().out


def test_the_bar_counts_the_merged_models_answers() -> None:
    agreement = {"same_answers": 4608, "of": 4609, "agrees": False}
    text = table.bar({**_outcome(0.98, False), "merged": agreement})
    assert text.startswith("bar MISSED") and text.endswith("gives 4608 of 4609 answers unchanged")


@pytest.mark.parametrize("same", [True, False])
def test_evaluation_takes_the_base_and_asks_the_merged_model(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path | None]] = []

    def answers(
        model: Path, data: Path, device: str, base: Path | None = None, *, as_merged: bool
    ) -> list[dict[str, Any]]:
        assert as_merged
        asked.append((model.name, base))
        said = "7" if same or base is not None else "8"
        return [
            {"id": i, "kind": kind, "images": ["a.png"], "answer": "7", "said": said}
            for i, kind in enumerate(KINDS)
        ]

    commands: list[list[str]] = []

    def run(words: list[str], **more: Any) -> SimpleNamespace:
        commands.append(words)
        return SimpleNamespace(stdout="ASSISTANT: 7\n")

    monkeypatch.setattr(evaluate, "evaluate", answers)
    monkeypatch.setattr(evaluate, "svc_accuracy", lambda: 0.969)
    monkeypatch.setattr("playground.digits.report.image_sheet", lambda *more: None)
    monkeypatch.setattr(subprocess, "run", run)
    outcome = quickstart.evaluate(tmp_path, "cpu", quickstart.LORA)
    base = tmp_path / "models/llm"
    assert asked == [("llava-digits-lora", base), ("llava-digits-merged", None)]
    chat, merge = commands
    assert chat[chat.index("--model-base") + 1] == str(base)
    assert "scripts/merge_lora_weights.py" in merge and str(tmp_path / "llava-digits-merged") in merge
    assert outcome["merged"]["same_answers"] == (len(KINDS) if same else 0)
    assert outcome["reached"] is same
    assert (tmp_path / "answers-lora.json").exists() and not (tmp_path / "answers.json").exists()


@pytest.mark.slow
def test_a_lora_folder_and_its_merged_model_answer_alike(checkpoints: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "llava-v1-tiny-lora"  # no template in its config: the name tells it
    shutil.copytree(checkpoints / "llava-tiny-v1.5-lora", adapter)
    base = checkpoints / "vicuna-tiny"
    folder = merged.merge(adapter, base)
    assert folder == tmp_path / "llava-v1-tiny-merged"
    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "a.png")
    questions = [
        {"id": i, "kind": "which_digit", "images": ["a.png"] * (i % 2), "question": text, "answer": "7"}
        for i, text in enumerate(("Which digit is this?", "What is 3 plus 4?", "Is this digit odd or even?"))
    ]
    first, second = (
        evaluate.answer_all(evaluate.Answerer(model, "cpu", given, as_merged=True), questions, tmp_path)
        for model, given in ((adapter, base), (folder, None))
    )
    assert merged.compare(first, second) == {"same_answers": 3, "of": 3, "agrees": True}
