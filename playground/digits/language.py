"""A sentencepiece tokenizer and a small Llama made from scratch, which knows digits from text only."""

from __future__ import annotations

import io
import json
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.model.tokenizer import load_tokenizer
from llava.train.labels.preprocess import preprocess
from playground.digits.data import dialog_record
from playground.digits.progress import Progress
from playground.digits.questions import (
    CAPTIONS,
    Question,
    caption,
    one_image_dialog,
    split_text_questions,
    two_image_dialog,
)

SEED = 2023
TEMPLATE = "vicuna_v1"
MAX_LENGTH = 2048
GROUP = 8  # batches that are made at once

Encoded = tuple[list[int], list[int]]  # ids and labels of one dialog


@dataclass(frozen=True)
class LanguageRecipe:
    """Size and training of the language model."""

    vocab_size: int = 640
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 3
    num_heads: int = 4
    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    seed: int = SEED


@dataclass(frozen=True)
class Text:
    """A dialog for the language model: turns as in training data, and words in place of its images."""

    turns: list[dict[str, str]]
    shown: list[str]
    template: str = TEMPLATE


def make_texts(rng: random.Random, size: int) -> list[Text]:
    """Make dialogs in which captions stand where images would be, and text questions."""
    text_train, _ = split_text_questions()
    return [_make_text(rng, text_train) for _ in range(size)]


def _make_text(rng: random.Random, text_train: list[Question]) -> Text:
    choice = rng.random()
    first = rng.randrange(10)
    second = first if rng.random() < 0.2 else rng.randrange(10)  # as often equal as in stage 2
    shown = [caption(digit, rng.randrange(99)) for digit in (first, second)]
    if choice < 0.1:  # a caption, said again in other words: what stage 1 asks for
        turns = [Question("caption", DEFAULT_IMAGE_TOKEN, caption(first, rng.randrange(99)))]
        return Text(_conversation(turns), shown[:1], "plain")
    if choice < 0.4:
        return Text(_conversation([rng.choice(text_train)]), [])
    if choice < 0.6:
        turns = one_image_dialog(first, rng, kinds=rng.choice((1, 1, 2, 3)))
        return Text(_conversation(turns), shown[:1])
    return Text(_conversation(two_image_dialog(first, second, rng)), shown)


def _conversation(turns: list[Question]) -> list[dict[str, str]]:
    return dialog_record("", turns)["conversations"]


def make_tokenizer(folder: Path, recipe: LanguageRecipe) -> None:
    """Train a byte-fallback BPE tokenizer on the corpus and write it as a Llama tokenizer folder."""
    rng = random.Random(recipe.seed)
    system = conv_templates[TEMPLATE].system
    lines = [
        f"{system} USER: {turn['value']}" if turn["from"] == "human" else f"ASSISTANT: {turn['value']}"
        for text in make_texts(rng, 2000)
        for turn in text.turns
    ]
    lines = [line.replace(DEFAULT_IMAGE_TOKEN, " ").replace("\n", " ") for line in lines]
    lines += [caption(digit, wording) for digit in range(10) for wording in range(len(CAPTIONS))] * 50
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=recipe.vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        **special,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def encode(text: Text, tokenizer: Any, *, with_system: bool = True) -> Encoded:
    """Encode a text as training data, ids and labels; the words of its images are not trained on."""
    conv = conv_templates[text.template].copy()
    if not with_system:
        conv.system = ""
    encoded = preprocess([text.turns], tokenizer, has_image=bool(text.shown), conv=conv)
    words = iter(text.shown)
    ids: list[int] = []
    labels: list[int] = []
    for token, label in zip(encoded["input_ids"][0].tolist(), encoded["labels"][0].tolist(), strict=True):
        if token == IMAGE_TOKEN_INDEX:
            described = tokenizer(next(words), add_special_tokens=False).input_ids
            ids += described
            labels += [IGNORE_INDEX] * len(described)
        else:
            ids.append(token)
            labels.append(label)
    return ids, labels


def _batch(rows: list[Encoded]) -> dict[str, torch.Tensor]:
    """Pad rows on the right: input_ids, labels, attention_mask (n, length)."""
    length = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORE_INDEX] * (length - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
    }


def batches(tokenizer: Any, recipe: LanguageRecipe) -> Iterator[list[Encoded]]:
    """Yield the batches of training; those of a group have like lengths, so that little is padding."""
    rng = random.Random(recipe.seed)
    size = recipe.batch_size
    for done in range(0, recipe.steps, GROUP):
        texts = make_texts(rng, GROUP * size)
        # the system prompt is long and always the same: seldom is enough
        encoded = [encode(text, tokenizer, with_system=rng.random() < 0.1) for text in texts]
        encoded.sort(key=lambda one: len(one[0]))
        group = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        rng.shuffle(group)
        yield from group[: recipe.steps - done]


def train_language_model(tokenizer: Any, recipe: LanguageRecipe) -> LlamaForCausalLM:
    """Train a small Llama on dialogs without images."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config).train()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / recipe.warmup_steps) * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        ),
    )
    progress = Progress("language model", recipe.steps)
    for rows in batches(tokenizer, recipe):
        loss = model(**_batch(rows)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.add(note=f"loss {loss.item():.3f}")
    return model.eval()


def make_language_model(folder: Path, recipe: LanguageRecipe | None = None) -> None:
    """Write tokenizer and language model as an ordinary Llama folder."""
    recipe = recipe or LanguageRecipe()
    make_tokenizer(folder, recipe)
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.unk_token  # as training does
    model = train_language_model(tokenizer, recipe)
    model.save_pretrained(folder)


if __name__ == "__main__":
    make_language_model(Path(sys.argv[1]))
