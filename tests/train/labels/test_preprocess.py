"""Ids and label masks as recorded, repaired masks without a start token, refusals."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_training import default_template, dialog, prepared_tokenizer, recorded

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.train import train
from llava.train.records import DataError

DIALOGS = recorded("dialogs.json")


def _runs(ids: Sequence[int], labels: Sequence[int]) -> list[int]:
    """Lengths of alternating runs of labels: ignored, kept, ignored ...; a kept label equals its id."""
    runs, kept = [0], False
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, IGNORE_INDEX)
        if (label != IGNORE_INDEX) != kept:
            kept = not kept
            runs.append(0)
        runs[-1] += 1
    return runs


def _sources(case: dict[str, Any]) -> list[list[dict[str, str]]]:
    return [dialog(*turns) for turns in DIALOGS[case["dialogs"]]]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in recorded("labels.json")])
def test_recorded_labels(case: dict[str, Any], variant_tokenizer: Callable[..., Any]) -> None:
    tokenizer = variant_tokenizer(case["variant"], case["max_length"])
    function = getattr(train, case["function"])
    kwargs = {} if case["function"] == "preprocess_plain" else {"has_image": case["has_image"]}
    with default_template(case["template"]):
        if case["expected"] == "refused":
            with pytest.raises(ValueError):
                function(_sources(case), tokenizer, **kwargs)
            return
        batch = function(_sources(case), tokenizer, **kwargs)
    rows = [(list(map(int, a)), list(map(int, b))) for a, b in zip(*batch.values(), strict=True)]
    got = [[zlib.crc32(",".join(map(str, ids)).encode()), _runs(ids, labels)] for ids, labels in rows]
    assert list(batch) == ["input_ids", "labels"]
    assert got == case["expected"]


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in recorded("image_marks.json")])
def test_recorded_image_tokens(case: dict[str, Any]) -> None:
    sources = [dialog(*(("human", text) for text in texts)) for texts in case["texts"]]
    args = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=case["start_end"])
    with default_template(case["template"]):
        out = train.preprocess_multimodal(sources, args)
    assert [[turn["value"] for turn in source] for source in out] == case["expected"]


def test_image_tokens_of_several_images_stay_in_place() -> None:
    args = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False)
    turns = [dialog(("human", "First <image>, then <image>: which?"), ("gpt", "The first."))]
    assert train.preprocess_multimodal(turns, args, keep_places=True) == turns
    args.mm_use_im_start_end = True
    wrapped = train.preprocess_multimodal(turns, args, keep_places=True)[0][0]["value"]
    assert wrapped == "First <im_start><image><im_end>, then <im_start><image><im_end>: which?"


def test_explicit_template_beats_the_default(variant_tokenizer: Callable[..., Any]) -> None:
    turns = [dialog(("human", "Hi"), ("gpt", "Hello"))]
    tokenizer = variant_tokenizer("plain")
    given = train.preprocess(turns, tokenizer, conv=conv_templates["llava_llama_2"])
    with default_template("llava_llama_2"):
        default = train.preprocess(turns, tokenizer)
    assert torch.equal(given["input_ids"], default["input_ids"])
    assert not torch.equal(given["input_ids"], train.preprocess(turns, tokenizer)["input_ids"])


@pytest.mark.parametrize("has_image", [False, True])
def test_mpt_tokenizer_learns_answers_with_their_end(checkpoints: Path, has_image: bool) -> None:
    """The reference masks all of it: its counts need a start token, which GPT-NeoX tokenizers do not add."""
    tokenizer = prepared_tokenizer(checkpoints / "llava-tiny-mpt")
    turns = [
        dialog(("human", "<image>\nWhere?"), ("gpt", "On the left."), ("human", "And?"), ("gpt", "A cat."))
    ]
    batch = train.preprocess(turns, tokenizer, has_image=has_image, conv=conv_templates["mpt"])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    kept = labels != IGNORE_INDEX
    assert torch.equal(labels[kept], ids[kept])
    end = "<|im_end|>"
    learned = tokenizer.decode(labels[kept], clean_up_tokenization_spaces=False)
    # the end mark is no token of its own here: its last piece may reach into the next turn's mark
    assert learned.startswith(f"On the left.{end}") and learned.endswith(f"A cat.{end}")
    assert len(learned) <= len(f"On the left.{end}A cat.{end}") + 1
    assert (ids == -200).sum() == int(has_image)


def test_slow_tokenizer_without_start_token_is_refused(variant_tokenizer: Callable[..., Any]) -> None:
    class Silent:
        """A tokenizer that adds nothing."""

        model_max_length = 512
        pad_token_id = 0
        is_fast = False

        def __call__(self, text: Any, **kwargs: Any) -> Any:
            rows = [[5] * len(one) for one in ([text] if isinstance(text, str) else text)]
            return SimpleNamespace(input_ids=torch.tensor(rows) if kwargs else rows[0])

    with pytest.raises(DataError, match="gives no character positions"):
        train.preprocess(
            [dialog(("human", "a"), ("gpt", "b"))], Silent(), conv=conv_templates["chatml_direct"]
        )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no turns"),
        (dialog(("user", "a"), ("gpt", "b")), "'user'; expected 'human' or 'gpt'"),
        (dialog(("human", "a"), ("human", "b")), "must alternate"),
    ],
)
def test_refused_dialogs(
    turns: list[dict[str, str]], message: str, variant_tokenizer: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match=message):
        train.preprocess([turns], variant_tokenizer("plain"), conv=conv_templates["v1"])


def test_plain_template_needs_one_image_and_one_caption(variant_tokenizer: Callable[..., Any]) -> None:
    tokenizer = variant_tokenizer("plain")
    with pytest.raises(DataError, match="found none"):
        train.preprocess_plain([dialog(("human", "x"), ("gpt", "y"))], tokenizer)
    with pytest.raises(DataError, match="found 1 turns"):
        train.preprocess_plain([dialog(("human", "<image>"))], tokenizer)
