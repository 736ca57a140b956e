"""Small tokenizers with chat templates, trained when a test asks for one, and hard dialogs for them."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# with a system text of its own, and a chain of thought in front of the last answer, as Qwen3 has it
THINKING = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{{ message.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}"
    "{{ message.content.split('</think>')[-1] if message.role == 'assistant' else message.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# no prompt of its own for an answer, a blank in front of one, and ends of two kinds
LLAMA_2 = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] {{ message.content }}"
    " [/INST]{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
CHANNELS = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|start|>user<|message|>{{ message.content }}<|end|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ message.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

# kind: template, start token, end token, further control tokens
KINDS: dict[str, tuple[str, str | None, str, tuple[str, ...]]] = {
    "chatml": (CHATML, None, "<|im_end|>", ("<|im_start|>",)),
    "thinking": (THINKING, None, "<|im_end|>", ("<|im_start|>",)),
    "llama_3": (LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>", ("<start_of_turn>",)),
    "llama_2": (LLAMA_2, "<s>", "</s>", ()),
    "channels": (CHANNELS, None, "<|return|>", ("<|start|>", "<|message|>", "<|channel|>", "<|end|>")),
}
_CORPUS = [
    "abc abcd ",
    "\n\n\n\t",
    "<|im|>",
    "user assistant system model ",
    "日本語",
    "'\"{}",
    "  a\n\n b",
] * 4
SNIPPETS = [
    *(
        "abc ",
        "Ünï ço日本語",
        "😀👩‍🚀\u200d",
        "\n\n \t",
        "\n",
        "'\"{}<>|",
        "1234567890",
        "الع",
        "e\u0301",
        "{{ x }}",
    ),
    *(
        "<|im_end|>",
        "<|im_start|>system\n",
        "</s>",
        "<|eot_id|>",
        "<end_of_turn>",
        "<bos>",
        "<|return|>",
        "<|im_en",
    ),
]


@cache
def chat_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer with the control tokens and the chat template of a kind."""
    template, start, end, control = KINDS[kind]
    model = Tokenizer(models.BPE())
    # whole runs of blanks may become one token: an answer's first newline melts with that of its header
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    special = [one for one in ("<|pad|>", start, end, *control) if one]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(one, special=True, normalized=False) for one in special],
        show_progress=False,
    )
    model.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=start, eos_token=end, pad_token="<|pad|>", chat_template=template
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def hard_text(chance: random.Random) -> str:
    """Return a text of snippets and single characters; often with blanks or control tokens at its ends."""
    ranges = ((32, 127), (160, 0x2FFF), (0x1F300, 0x1F6FF))
    return "".join(
        chance.choice(SNIPPETS) if chance.random() < 0.7 else chr(chance.randrange(*chance.choice(ranges)))
        for _ in range(chance.randrange(12))
    )


def hard_dialog(chance: random.Random) -> list[dict[str, Any]]:
    """Return a dialog of one to three rounds, as training data has it."""
    turns = []
    for _ in range(chance.randrange(1, 4)):
        turns.append({"from": "human", "value": hard_text(chance) or "x"})
        turns.append({"from": "gpt", "value": hard_text(chance)})
    return turns
