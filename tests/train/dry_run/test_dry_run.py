"""--dry_run: what it shows, that it trains and writes nothing, and its memory estimate against runs."""

from __future__ import annotations

import gc
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_training import flags, run_train
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.model.tokenizer import load_tokenizer
from llava.train.data.start_checks import NO_IMAGE
from llava.train.dry_run import report
from llava.train.labels.preprocess import preprocess
from llava.train.llava_trainer import LLaVATrainer

V15 = "--mm_projector_type mlp2x_gelu --save_strategy no"
CHAT = f"--version v1 --data_path {{data}}/finetune.json {V15}"
RECIPES = {
    "full": f"{CHAT} --gradient_checkpointing True",
    "full, bfloat16": f"{CHAT} --bf16 True",
    "lora": f"{CHAT} --lora_enable True --lora_r 16 --bf16 True --gradient_checkpointing True",
    "stage 1": f"--version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True {V15}",
}


@pytest.fixture(scope="module")
def base(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints whose LLM is large enough for its activations to matter."""
    root = tmp_path_factory.mktemp("base")
    for name in ("tiny-clip", "vicuna-tiny"):
        shutil.copytree(checkpoints / name, root / name)
    for file in (root / "vicuna-tiny").glob("*.safetensors"):
        file.unlink()
    old = LlamaConfig.from_pretrained(root / "vicuna-tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=old.vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        pad_token_id=old.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(root / "vicuna-tiny")
    return root


def _report(base: Path, data: Path, out: Path, more: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Run a command with --dry_run; returns what it prints and the report's parts."""
    made = []

    class Kept(report.DryRun):
        def __init__(self, trainer: Any) -> None:
            super().__init__(trainer)
            made.append(self)

    text = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(report, "DryRun", Kept)
        patch.setattr("sys.stdout", text)
        run = run_train(flags(base, data, out, f"{more} --dry_run True"))
    assert run.loss == []
    return text.getvalue(), made[0]


def test_report(
    checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = f"{CHAT} --mm_projector_lr 1e-3 --learning_rate 2e-4 --weight_decay 0.1 --freeze_backbone False"
    text, _ = _report(checkpoints, training_data, tmp_path / "out", more, monkeypatch)
    assert "Where is the cat number 0? ASSISTANT:{+ The red dog stands near the door.</s>+}" in text
    assert "record 0 (id 'f0')" in text and "record 2 (id 'f2')" in text  # with and without an image
    assert "<image: 16 tokens>" in text and "16 of them for 1 image(s)" in text
    assert "64 samples, 43 with images, 21 of text alone" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("   ")]
    assert ["projector", "2", "6,144", "float32", "0.001", "0.1"] in rows
    assert ["LLM", "head", "1", "64,064", "float32", "0.0002", "0.1"] in rows
    assert ["vision", "tower", "71", "53,696", "float32", "frozen", "-"] in rows
    assert "with --gradient_checkpointing it would be" in text
    assert list(tmp_path.iterdir()) == []  # the output folder is not made


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_an_output_folder_stays_as_it_was(
    resume: str, checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what the next start would remove or set aside."""
    files = ["notes", "run_manifest.json", "tmp-checkpoint-4/config.json", "checkpoint-2/config.json"]
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    _report(checkpoints, training_data, tmp_path / "out", f"{CHAT} --resume {resume}", monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_data_without_an_image_is_named(
    base: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
    (tmp_path / "t.json").write_text(json.dumps([{"conversations": turns}] * 4))
    more = f"--version v1 --data_path {tmp_path}/t.json {V15}"
    text, _ = _report(base, training_data, tmp_path / "out", more, monkeypatch)
    assert f"WARNING: {NO_IMAGE}" in text


def test_colours_on_a_terminal(
    variant_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, checkpoints: Path
) -> None:
    turns = [{"from": "human", "value": "<image>\nA\u00e9?"}, {"from": "gpt", "value": "\u65e5 </s>  b"}]
    for tokenizer in (
        variant_tokenizer("plain"),
        load_tokenizer(checkpoints / "llava-tiny-mpt"),
    ):
        batch = preprocess([turns], tokenizer, True, conv_templates["v1"], "spans")
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        text = report.mark_text(ids, labels, tokenizer, [4], ("<<", ">>"))
        assert text.endswith("ASSISTANT:<< \u65e5 </s>  b</s>>>")
        assert "USER: <image: 4 tokens>" in text and "A\u00e9? ASSISTANT" in text
        labels.fill_(IGNORE_INDEX)
        assert "<<" not in report.mark_text(ids, labels, tokenizer, [4], ("<<", ">>"))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    chosen = []
    monkeypatch.setattr(report.DryRun, "__init__", lambda self, trainer: None)
    monkeypatch.setattr(report.DryRun, "samples", lambda self, colours: chosen.append(colours) or [])
    for part in ("counts", "what_trains", "memory"):
        monkeypatch.setattr(report.DryRun, part, lambda self: [])
    trainer: Any = type("T", (), {"args": type("A", (), {"should_log": True})})
    monkeypatch.delenv("NO_COLOR", raising=False)
    report.report_dry_run(trainer, out=Terminal())
    report.report_dry_run(trainer, out=io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    report.report_dry_run(trainer, out=Terminal())
    assert chosen == [True, False, False]


def _measured(argv: list[str], order: list[int]) -> int:
    """Return the most bytes that PyTorch's allocator held for a run, its weights included."""
    found: list[int] = []
    train = LLaVATrainer.train

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights = sum(param.numel() * param.element_size() for param in self.model.parameters())
        gc.collect()  # or memory of earlier tests would be given back meanwhile
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = train(self, *args, **kwargs)
        events = [one for one in profiler.profiler.kineto_results.events() if one.name() == "[memory]"]
        sizes = [one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]
        found.append(weights + int(np.cumsum(sizes).max()))
        return result

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(LLaVATrainer, "train", watched)
        run_train(argv, order=order)
    return found[0]


@pytest.mark.parametrize(
    "recipe", [name if name == "stage 1" else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_estimate_is_within_15_percent(
    recipe: str, base: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps with the longest samples, measured by the profiler."""
    command = RECIPES[recipe]
    _, report = _report(base, training_data, tmp_path / "dry", command, monkeypatch)
    estimate = report.estimate("gradient_checkpointing" in command).peak
    longest = np.argsort(report.dataset.lengths, kind="stable")[::-1][:4].tolist()
    del report
    argv = flags(base, training_data, tmp_path / "run", f"{command} --max_steps 2")
    measured = _measured(argv, longest * 2)
    print(f"{recipe}: estimated {estimate / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert measured > 1e6
    assert 0.85 * measured < estimate < 1.15 * measured


def test_the_longest_samples_are_those_of_the_most_tokens(
    checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouping takes an image for 128 words; here it is 16 tokens, and the longest samples are text."""
    _, parts = _report(checkpoints, training_data, tmp_path / "out", CHAT, monkeypatch)
    chosen = [parts._tokens(parts.trainer.data_collator([one]))[0] for one in parts._longest_samples()]
    every = [parts._tokens(parts.trainer.data_collator([one]))[0] for one in parts.dataset]
    assert max(chosen) > 0.95 * max(every) and min(chosen) > 0.9 * max(every)
    assert len(chosen) == 4
