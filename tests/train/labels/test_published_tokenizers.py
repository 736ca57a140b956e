"""Published tokenizers with their own templates: `bash scripts/fetch_tokenizers.sh` gets them, see there."""

from __future__ import annotations

import os
import random
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import hard_dialog
from test_chat_templates import asked, encoded, runs_of, text_of

from llava.conversation import CHAT_TEMPLATE, conv_templates, conversation_for
from llava.inference.prompt import encode_prompt
from llava.model.tokenizer import load_tokenizer

PLACE = Path(os.environ.get("LLAVA_TOKENIZERS", Path.home() / ".cache" / "llava" / "tokenizers"))
# named template, end of answers, whether the tokenizer's own template and the named one strip texts
PUBLISHED = {
    "qwen3": ("qwen_1_5", "<|im_end|>", False, False),
    "llama3_1": ("llama_3", "<|eot_id|>", True, True),
    "gemma3": ("gemma_instruct", "<end_of_turn>", True, False),
}
DIALOGS = 150


@cache
def published(name: str) -> Any:
    if not (PLACE / name / "tokenizer.json").is_file():
        pytest.skip(f"{PLACE / name} is not there: bash scripts/fetch_tokenizers.sh {name}")
    return load_tokenizer(PLACE / name)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_answers_are_learned_and_prompts_are_as_asked(name: str, named: bool) -> None:
    key, end, *strips = PUBLISHED[name]
    tokenizer = published(name)
    conv = conversation_for(key if named else CHAT_TEMPLATE, tokenizer)
    control = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    chance = random.Random(name)
    for _ in range(DIALOGS):
        turns = hard_dialog(chance)
        ids, labels = encoded(turns, tokenizer, conv)
        answers = [turn["value"].strip() if strips[named] else turn["value"] for turn in turns[1::2]]
        if name == "qwen3" and not named:
            answers[-1] = answers[-1].lstrip("\n")
        wanted = [unicodedata.normalize("NFC", text + end) for text in answers]
        assert [text_of(run, tokenizer) for run in runs_of(labels)] == wanted, turns
        prompt = encode_prompt(tokenizer, asked(turns, conv), 0)
        assert ids[: len(prompt)] == prompt
        harmless, _ = encoded([{**turn, "value": "a"} for turn in turns], tokenizer, conv)
        assert [one for one in ids if one in control] == [one for one in harmless if one in control]


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_templates_are_those_of_the_published_tokenizers(name: str) -> None:
    tokenizer = published(name)
    named = conv_templates[PUBLISHED[name][0]].copy()
    own = conversation_for(CHAT_TEMPLATE, tokenizer)
    own.system = named.system
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Yes?"},
        {"from": "human", "value": "So"},
    ]
    texts = [asked([*turns, {}], one).get_prompt() for one in (named, own)]
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""  # which Qwen 1.5 and 2 do not have
    assert texts[0] + thought == texts[1].removeprefix(tokenizer.bos_token or "")
    ids = [encode_prompt(tokenizer, asked(turns[:1] + [{}], one), 0) for one in (named, own)]
    if name == "gemma3":  # the tokenizer puts its start token in front of the named template's text
        assert ids[0] == ids[1] and ids[0].count(tokenizer.bos_token_id) == 1
