"""What training tests share: recorded values, tokenizer variants, images by formula, runs of train()."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava import conversation
from llava.model.tokenizer import load_tokenizer

DATA = Path(__file__).parent.parent / "data" / "train"

# The tokenizers of the recorded labels: one sentencepiece model under different settings.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "plain": ({"legacy": False}, {}),
    "legacy": ({"legacy": True}, {}),
    "nokey": ({}, {}),
    "imtokens": ({"legacy": False}, {"<im_patch>": 2000, "<im_start>": 2001, "<im_end>": 2002}),
    "chatml": ({"legacy": False}, {"<|im_start|>": 2000, "<|im_end|>": 2001}),
    "chatml_legacy": ({"legacy": True}, {"<|im_start|>": 2000, "<|im_end|>": 2001}),
}


def recorded(name: str) -> Any:
    """Read a file of recorded values."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def tokenizer_folder(folder: Path, variant: str) -> Path:
    """Write the folder of a tokenizer variant."""
    settings, added = VARIANTS[variant]
    folder.mkdir(parents=True)
    shutil.copy(DATA / "tokenizer.model", folder)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048, **special, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "<unk>"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 2000}))
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def prepared_tokenizer(folder: str | Path, max_length: int | None = None) -> Any:
    """Load a tokenizer as train() does."""
    tokenizer = load_tokenizer(str(folder), use_fast=False, padding_side="right")
    tokenizer.pad_token = tokenizer.unk_token
    if max_length is not None:
        tokenizer.model_max_length = max_length
    return tokenizer


def dialog(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    """Write turns as records have them."""
    return [{"from": speaker, "value": text} for speaker, text in pairs]


@contextlib.contextmanager
def default_template(key: str) -> Iterator[None]:
    """Set the default template, as other projects do, for the length of a test."""
    before = conversation.default_conversation
    if key != "default_conversation":
        conversation.default_conversation = conversation.conv_templates[key]
    try:
        yield
    finally:
        conversation.default_conversation = before


# ---- data by formula, the same as when the runs were recorded ----

COLORS = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]
THINGS = ["cat", "dog", "table", "window", "river", "tree", "car", "bird", "lamp", "bridge", "boat", "cup"]
PLACES = ["on the left", "on the right", "near the door", "under the roof", "beside a wall", "in the middle"]
VERBS = ["stands", "sleeps", "waits", "shines", "moves slowly", "rests", "is visible"]
SIZES = [(64, 48), (40, 80), (56, 56), (100, 30), (33, 47), (90, 90)]


def sample_image(width: int, height: int, k: int) -> Image.Image:
    """Paint an RGB image of gradients, stripes and blocks."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 127 + 120 * np.sin(x * (0.05 + 0.013 * (k % 7)) + k)
    green = 127 + 120 * np.cos(y * (0.07 + 0.009 * (k % 5)) - k)
    blue = ((x // (5 + k % 4) + y // (7 + k % 3)) % 2) * 200 + 20
    return Image.fromarray(np.stack([red, green, blue], -1).round().clip(0, 255).astype(np.uint8))


def _sentence(k: int) -> str:
    verb = VERBS[(k * 3 + k // 5) % 7]
    return f"The {COLORS[k % 8]} {THINGS[(k * 5 + 1) % 12]} {verb} {PLACES[(k * 7 + 2) % 6]}."


def _paragraph(k: int, n: int) -> str:
    return " ".join(_sentence(k * 13 + 3 * j) for j in range(n))


def caption_record(k: int, name: str) -> dict[str, Any]:
    """Make a record for stage 1."""
    question = "<image>\nWhat do you see?" if k % 2 else "Describe the picture.\n<image>"
    return {
        "id": f"p{k}",
        "image": name,
        "conversations": dialog(("human", question), ("gpt", _paragraph(k, 1 + k % 3))),
    }


def chat_record(k: int, name: str) -> dict[str, Any]:
    """Make a record of one to three rounds for stage 2; every third has no image."""
    pairs = []
    for j in range(1 + k % 3):
        pairs.append(("human", f"Where is the {THINGS[(k + j) % 12]} number {k + j}?"))
        pairs.append(("gpt", _paragraph(k + 17 * j, 1 + (k + j) % 4)))
    turns = dialog(*pairs)
    if k % 3 == 2:
        return {"id": f"f{k}", "conversations": turns}
    question = turns[0]["value"]
    turns[0]["value"] = f"<image>\n{question}" if k % 2 else f"{question}\n<image>"
    return {"id": f"f{k}", "image": name, "conversations": turns}


def write_training_data(folder: Path, n: int = 64) -> Path:
    """Write images/, pretrain.json and finetune.json with n records each."""
    (folder / "images").mkdir(parents=True)
    names = [f"pic_{k:03d}.png" for k in range(n)]
    for k, name in enumerate(names):
        sample_image(*SIZES[k % 6], k).save(folder / "images" / name)
    for file, make in (("pretrain.json", caption_record), ("finetune.json", chat_record)):
        records = [make(k, name) for k, name in enumerate(names)]
        (folder / file).write_text(json.dumps(records))
    return folder


# ---- runs of train() in this process ----


@dataclass
class Run:
    """What was seen of a run."""

    read: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    label_tokens: list[int] = field(default_factory=list)
    groups: list[list[float]] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    trainer: Any = None


class _EnoughSeen(Exception):
    """Ends a run whose first step is not wanted."""


def run_train(argv: Sequence[str], *, order: Sequence[int] | None = None, steps: int | None = None) -> Run:
    """Run train() with a command line and watch it.

    order: samples to read, in place of the sampler's order. steps: stop after so many; 0 before the first.
    """
    from llava.train import train as train_module
    from llava.train.llava_trainer import LLaVATrainer

    seen = Run()
    read, step, optimizer = (
        train_module.LazySupervisedDataset.__getitem__,
        LLaVATrainer.training_step,
        LLaVATrainer.create_optimizer,
    )

    def watch_read(self: Any, i: int) -> Any:
        seen.read.append(int(i))
        return read(self, i)

    def watch_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.label_tokens.append(int((inputs["labels"] != -100).sum()))
        loss = step(self, model, inputs, *args, **kwargs)
        norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
        seen.loss.append(float(loss))
        seen.grad_norm.append(float(np.linalg.norm(norms)))
        if steps is not None and len(seen.loss) >= steps:
            self.control.should_training_stop = True
        return loss

    def watch_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = optimizer(self, *args, **kwargs)
        seen.trainer = self
        seen.trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [g for g in made.param_groups if g["params"]]
        seen.groups = [[len(g["params"]), g.get("initial_lr", g["lr"]), g["weight_decay"]] for g in groups]
        if steps == 0:
            raise _EnoughSeen
        return made

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_EnoughSeen):
        patch.setattr(sys, "argv", ["train.py", *argv])
        patch.setattr(train_module.LazySupervisedDataset, "__getitem__", watch_read)
        patch.setattr(LLaVATrainer, "training_step", watch_step)
        patch.setattr(LLaVATrainer, "create_optimizer", watch_optimizer)
        if order is not None:
            patch.setattr(LLaVATrainer, "_get_train_sampler", lambda self, *a, **k: list(order))
        train_module.train()
    return seen


COMMON = """
    --per_device_train_batch_size 4 --num_train_epochs 1 --logging_steps 1 --report_to none
    --warmup_ratio 0.03 --lr_scheduler_type cosine --weight_decay 0. --mm_vision_select_layer -2
    --model_max_length 512 --dataloader_num_workers 0 --lazy_preprocess True --bf16 False --disable_tqdm True
"""


def flags(checkpoints: Path, data: Path, output: Path, more: str, *, base: str = "vicuna-tiny") -> list[str]:
    """Write a command line: the common flags and `more`, where {ck}, {data} and {rec} stand for folders."""
    placed = more.format(ck=checkpoints, data=data, rec=DATA).split()
    paths = {
        "--model_name_or_path": checkpoints / base,
        "--vision_tower": checkpoints / "tiny-clip",
        "--image_folder": data / "images",
        "--output_dir": output,
    }
    return [*COMMON.split(), *(str(part) for pair in paths.items() for part in pair), *placed]
