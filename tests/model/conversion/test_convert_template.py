"""The chat template of an exported folder renders what Conversation.get_prompt() gives."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from llava.conversation import CHAT_TEMPLATE, Conversation, conv_templates
from llava.model.conversion.template import chat_template
from llava.utils import UserError

TEXTS = ['say "a\\n" {{ b }}', "  two\n\nlines ", "it's {% c %}", "<image> é 漢", "last"]


def render(template: str, messages: list[dict[str, Any]], *, answer: bool) -> str:
    return render_jinja_template([messages], chat_template=template, add_generation_prompt=answer)[0][0]


def dialog(
    conversation: Conversation, turns: int, *, image: bool
) -> tuple[Conversation, list[dict[str, Any]]]:
    """The same dialog as a conversation and as messages; its first turn may have an image."""
    conversation = conversation.copy()
    messages: list[dict[str, Any]] = []
    for index, text in enumerate(TEXTS[:turns]):
        parts = [{"type": "text", "text": text}] + [{"type": "image"}] * (image and index == 0)
        messages.append(
            {"role": ("user", "assistant")[index % 2], "content": parts if index % 3 == 0 else text}
        )
        said = f"<image>\n{text}" if image and index == 0 else text
        conversation.append_message(conversation.roles[index % 2], said)
    return conversation, messages


@pytest.mark.parametrize("key", [key for key in conv_templates if key != CHAT_TEMPLATE])
@pytest.mark.parametrize("image", [True, False])
def test_rendering_equals_get_prompt(key: str, image: bool) -> None:
    template = chat_template(conv_templates[key])
    for turns in range(1, 6):
        conversation, messages = dialog(conv_templates[key], turns, image=image)
        assert render(template, messages, answer=False) == conversation.get_prompt()
        if turns % 2:
            conversation.append_message(conversation.roles[1], None)
            assert render(template, messages, answer=True) == conversation.get_prompt()


@pytest.mark.parametrize("key", ["llava_v1", "v0", "chatml_direct", "llava_llama_2", "mistral_instruct"])
def test_a_system_message_takes_the_place_of_the_templates_own(key: str) -> None:
    conversation, messages = dialog(conv_templates[key], 3, image=True)
    mark = "<|im_start|>system\n"
    conversation.system = (mark if conversation.system.startswith(mark) else "") + "Answer in rhymes."
    for content in ("Answer in rhymes.", [{"type": "text", "text": "Answer in rhymes."}]):
        said = [{"role": "system", "content": content}, *messages]
        assert render(chat_template(conv_templates[key]), said, answer=False) == conversation.get_prompt()


def test_start_and_end_tokens_stand_around_each_image() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}, {"type": "image"}]}
    ]
    rendered = render(chat_template(conv_templates["llava_v1"], start_end=True), messages, answer=False)
    one = "<im_start><image><im_end>\n"
    assert rendered.endswith(f"USER: {one}{one}Hi ")


@pytest.mark.parametrize("key", ["llava_v1", "llava_llama_2"])
def test_a_strange_role_is_refused(key: str) -> None:
    with pytest.raises(TemplateError, match="user or assistant"):
        render(chat_template(conv_templates[key]), [{"role": "tool", "content": "a"}], answer=True)


def test_llama_2_begins_with_the_user_as_in_get_prompt() -> None:
    conversation = conv_templates["llava_llama_2"].copy()
    conversation.append_message(conversation.roles[1], "Hello")
    with pytest.raises(UserError):
        conversation.get_prompt()
    with pytest.raises(TemplateError, match="first message"):
        messages = [{"role": "assistant", "content": "Hello"}]
        render(chat_template(conv_templates["llava_llama_2"]), messages, answer=False)
