"""Chat templates: how a dialog becomes a prompt, which parts of it are answers, which template to use."""

from llava.conversation.chat_style import ChatStyle
from llava.conversation.choose import (
    choose_template,
    key_for_training,
    version_for,
    warn_of_unknown_template,
)
from llava.conversation.newer_templates import (
    conv_chat_template,
    conv_gemma_instruct,
    conv_llama_3,
    conv_llava_llama_2_mmtag,
    conv_llava_llama_2_simple,
    conv_llava_llama_3,
    conv_mistral_orca,
    conv_mistral_zephyr,
    conv_phi_3,
    conv_qwen,
)
from llava.conversation.pieces import Encoded, encode_pieces
from llava.conversation.registry import (
    Template,
    check_caption,
    conv_templates,
    conversation_for,
    find_template,
    register_template,
    template_of,
)
from llava.conversation.render import (
    PAD_COLOR,
    Conversation,
    Message,
)
from llava.conversation.styles import (
    STYLES,
    Llama2Style,
    Piece,
    SeparatorStyle,
    Span,
    Style,
    style_of,
)
from llava.conversation.templates import (
    conv_chatml_direct,
    conv_llama_2,
    conv_llava_llama_2,
    conv_llava_plain,
    conv_llava_v0,
    conv_llava_v0_mmtag,
    conv_llava_v1,
    conv_llava_v1_mmtag,
    conv_mistral_instruct,
    conv_mpt,
    conv_vicuna_v0,
    conv_vicuna_v1,
)
from llava.conversation.tokenizer_template import CHAT_TEMPLATE

__all__ = [
    "CHAT_TEMPLATE",
    "ChatStyle",
    "Conversation",
    "Encoded",
    "Piece",
    "conv_chat_template",
    "conv_gemma_instruct",
    "conv_llama_3",
    "conv_llava_llama_2_mmtag",
    "conv_llava_llama_2_simple",
    "conv_llava_llama_3",
    "conv_mistral_orca",
    "conv_mistral_zephyr",
    "conv_phi_3",
    "conv_qwen",
    "conversation_for",
    "encode_pieces",
    "Llama2Style",
    "Message",
    "PAD_COLOR",
    "STYLES",
    "SeparatorStyle",
    "Span",
    "Style",
    "style_of",
    "check_caption",
    "Template",
    "choose_template",
    "conv_chatml_direct",
    "conv_llama_2",
    "conv_llava_llama_2",
    "conv_llava_plain",
    "conv_llava_v0",
    "conv_llava_v0_mmtag",
    "conv_llava_v1",
    "conv_llava_v1_mmtag",
    "conv_mistral_instruct",
    "conv_mpt",
    "conv_templates",
    "conv_vicuna_v0",
    "conv_vicuna_v1",
    "default_conversation",
    "find_template",
    "register_template",
    "key_for_training",
    "template_of",
    "version_for",
    "warn_of_unknown_template",
]

# Read at call time by `preprocess`; other projects assign it.
default_conversation = conv_vicuna_v1
