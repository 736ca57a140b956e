"""The templates: their texts, their conversations, and the registry entries that say where each belongs."""

from __future__ import annotations

from typing import Any

from llava.conversation.registry import Template, register_template
from llava.conversation.render import Conversation
from llava.conversation.styles import SeparatorStyle

# The texts below are part of what checkpoints were trained with: not one character may change.
_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions."
)
_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.The visual content will be provided with the following format: <Image>visual "
    "content</Image>."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or "
    "illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n"
    "\nIf a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest "
    "answers."
)
_SEED_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_SEED_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively short amount of "
    "time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other "
    "hand, are finite and will eventually be depleted, such as coal, oil, and natural gas. Here are some key "
    "differences between renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy "
    "sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than "
    "non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, and other "
    "negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have "
    "lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "
    "locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different "
    "situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social instability.\n"
)


def _markdown(system: str, version: str = "Unknown", examples: tuple[str, ...] = ()) -> Conversation:
    """### Human: ... ### Assistant: ..., with examples as question, answer, question, ..."""
    roles = ("Human", "Assistant")
    turns: list[list[Any]] = [[roles[index % 2], text] for index, text in enumerate(examples)]
    return Conversation(system, roles, turns, len(turns), SeparatorStyle.SINGLE, "###", None, version)


def _vicuna(system: str, version: str = "v1") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.TWO, " ", "</s>", version)


def _llama_2(system: str, sep: str = "<s>") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.LLAMA_2, sep, "</s>", "llama_v2")


def _chatml(system: str) -> Conversation:
    roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    return Conversation(
        f"<|im_start|>system\n{system}", roles, [], 0, SeparatorStyle.MPT, "<|im_end|>", None, "mpt"
    )


conv_vicuna_v0 = _markdown(_HUMAN, examples=(_SEED_QUESTION, _SEED_ANSWER))
conv_vicuna_v1 = _vicuna(_USER)
conv_llama_2 = _llama_2(_LLAMA_2)
conv_llava_llama_2 = _llama_2(_LLAVA_LLAMA_2)
conv_mistral_instruct = _llama_2("", sep="")
conv_chatml_direct = _chatml("Answer the questions.")
conv_mpt = _chatml(_MPT)
conv_llava_plain = Conversation("", ("", ""), [], 0, SeparatorStyle.PLAIN, "\n")
conv_llava_v0 = _markdown(_HUMAN)
conv_llava_v0_mmtag = _markdown(_MMTAG, version="v0_mmtag")
conv_llava_v1 = _vicuna(_HUMAN)
conv_llava_v1_mmtag = _vicuna(_MMTAG, version="v1_mmtag")

register_template(Template("v0", conv_vicuna_v0, aliases=("default",)))
register_template(Template("vicuna_v1", conv_vicuna_v1, aliases=("v1",)))
register_template(Template("llama_2", conv_llama_2))
register_template(
    Template(
        "mistral_instruct",
        conv_mistral_instruct,
        ("llava_mistral",),
        aliases=("llava_mistral_instruct",),
        name_parts=("mistral",),
        rank=1,
    )
)
register_template(
    Template(
        "chatml_direct", conv_chatml_direct, aliases=("mistral_direct",), name_parts=("v1.6-34b",), rank=2
    )
)
register_template(Template("plain", conv_llava_plain, aliases=("v0_plain",)))
register_template(Template("llava_v0", conv_llava_v0))
register_template(Template("v0_mmtag", conv_llava_v0_mmtag))
register_template(Template("llava_v1", conv_llava_v1, name_parts=("v1",), rank=3))
register_template(Template("v1_mmtag", conv_llava_v1_mmtag))
register_template(Template("llava_llama_2", conv_llava_llama_2, name_parts=("llama-2",), rank=0))
register_template(Template("mpt", conv_mpt, ("llava_mpt",), name_parts=("mpt",), rank=4))
