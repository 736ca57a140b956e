"""Templates of LLaVA-NeXT, LLaVA-OneVision and others after version 1.6, under the names that they go by."""

from __future__ import annotations

from llava.conversation.chat_style import ChatStyle
from llava.conversation.registry import Template, register_template
from llava.conversation.render import Conversation
from llava.conversation.styles import SeparatorStyle
from llava.conversation.tokenizer_template import CHAT_TEMPLATE, TokenizerStyle

# The texts below are part of what checkpoints were trained with: not one character may change.
_SEES = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_ABOUT = "Answer the questions about the visual content that the user provides."
_MMTAG = "The visual content will be provided with the following format: <Image>visual content</Image>."
_ORCA = (
    "You are MistralOrca, a large language model trained by Alignment Lab AI. Write out your reasoning "
    "step-by-step to be sure you get the right answers!"
)

_CHATML = ChatStyle("CHATML", system_head="<|im_start|>system\n", after_end="\n")
_LLAMA_3 = ChatStyle(
    "LLAMA_3", system_head="<|start_header_id|>system<|end_header_id|>\n\n", trim=True, after_end=""
)
_GEMMA = ChatStyle("GEMMA", after_end="\n")
_PHI_3 = ChatStyle("PHI_3", system_head="<|system|>\n", after_end="\n")


def _chat(system: str, style: ChatStyle, roles: tuple[str, str], end: str, version: str) -> Conversation:
    return Conversation(system, roles, [], 0, style, end, None, version)


def _llama_3(system: str) -> Conversation:
    user, assistant = (f"<|start_header_id|>{one}<|end_header_id|>\n\n" for one in ("user", "assistant"))
    return _chat(system, _LLAMA_3, (user, assistant), "<|eot_id|>", "llama_v3")


def _llama_2(system: str, version: str) -> Conversation:
    roles = ("USER", "ASSISTANT")
    return Conversation(system, roles, [], 0, SeparatorStyle.LLAMA_2, "<s>", "</s>", version)


def _between_ends(system: str, roles: tuple[str, str], end: str) -> Conversation:
    return Conversation(system, roles, [], 0, SeparatorStyle.MPT, end, None, "mpt")


conv_qwen = _chat(
    "You are a helpful assistant.",
    _CHATML,
    ("<|im_start|>user\n", "<|im_start|>assistant\n"),
    "<|im_end|>",
    "qwen",
)
conv_llava_llama_3 = _llama_3(_SEES)
conv_llama_3 = _llama_3("")
conv_gemma_instruct = _chat(
    "", _GEMMA, ("<start_of_turn>user\n", "<start_of_turn>model\n"), "<end_of_turn>", "gemma"
)
conv_phi_3 = _chat("", _PHI_3, ("<|user|>\n", "<|assistant|>\n"), "<|end|>", "phi3")
conv_llava_llama_2_simple = _llama_2(_ABOUT, "llama_v2")
conv_llava_llama_2_mmtag = _llama_2(_ABOUT + _MMTAG, "llama_v2_mmtag")
conv_mistral_orca = _between_ends(
    f"<|im_start|>system\n{_ORCA}", ("<|im_start|>user\n", "<|im_start|>assistant\n"), "<|im_end|>"
)
conv_mistral_zephyr = _between_ends(
    "<|system|>\nYou are a helpful AI assistant.", ("<|user|>\n", "<|assistant|>\n"), "</s>"
)
# Renders when it is bound to a tokenizer, see conversation_for.
conv_chat_template = Conversation(
    "", ("user", "assistant"), [], 0, TokenizerStyle("CHAT_TEMPLATE"), "", None, CHAT_TEMPLATE
)

register_template(
    Template("llava_llama_3", conv_llava_llama_3, name_parts=("llama-3", "llama3", "llama_3"), rank=0)
)
register_template(Template("llama_3", conv_llama_3))
register_template(
    Template(
        "qwen_1_5",
        conv_qwen,
        ("llava_qwen",),
        aliases=("qwen_2",),
        name_parts=("qwen", "onevision"),
        rank=2,
    )
)
register_template(
    Template("gemma_instruct", conv_gemma_instruct, ("llava_gemma",), ("gemma",), ("gemma",), rank=2)
)
register_template(
    Template("phi3", conv_phi_3, aliases=("phi3_instruct",), name_parts=("phi-3", "phi3"), rank=2)
)
register_template(Template("llava_llama_2_simple", conv_llava_llama_2_simple))
register_template(Template("llava_llama_2_mmtag", conv_llava_llama_2_mmtag))
register_template(Template("mistral_orca", conv_mistral_orca))
register_template(Template("mistral_zephyr", conv_mistral_zephyr))
register_template(Template(CHAT_TEMPLATE, conv_chat_template))
