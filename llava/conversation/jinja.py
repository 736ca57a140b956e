"""A template in jinja, as processors of llava-hf folders and servers read it."""

from __future__ import annotations

import json

from llava.conversation.render import Conversation
from llava.conversation.styles import quoted, style_of


def chat_template(conversation: Conversation, image_token: str, video_token: str = "") -> str:
    """Return a jinja template that renders messages as `Conversation.get_prompt()` does.

    Messages have role user or assistant, and as content a text or a list of parts of type text and image;
    images go in front of the text, one line each. A first message of role system takes the place of the
    template's own system text. image_token, video_token: what stands for an image and for a video, which is a
    part of type video; "" for a model without. The start token is left to the tokenizer.
    """
    style = style_of(conversation.sep_style)
    if own := style.own_jinja(image_token, video_token):
        return own
    tokens = {"image": image_token, **({"video": video_token} if video_token else {})}
    media = "".join(
        f"{{% {'elif' if index else 'if'} part['type'] == '{kind}' %}}{{{{ {quoted(token)} + '\\n' }}}}"
        for index, (kind, token) in enumerate(tokens.items())
    )
    names = {"user": conversation.roles[0], "assistant": conversation.roles[1]}
    _, system, _ = style.jinja_head(conversation)
    lines = [
        "{% if messages and messages[0]['role'] == 'system' %}",
        "{% set system = messages[0]['content'] if messages[0]['content'] is string"
        " else messages[0]['content'][0]['text'] %}{% set turns = messages[1:] %}",
        f"{{% else %}}{{% set system = {quoted(system)} %}}{{% set turns = messages %}}{{% endif %}}",
        f"{{% set names = {json.dumps(names)} %}}",
        style.jinja_opening(conversation, conversation.get_prompt()),
    ]
    lines += [
        "{% for message in turns %}",
        "{% if message['role'] not in names %}"
        "{{ raise_exception('The role of a message is user or assistant, of the first also system.') }}"
        "{% endif %}",
        "{% set said %}{% if message['content'] is string %}{{ message['content'] }}{% else %}",
        f"{{% for part in message['content'] %}}{media}{{% endif %}}{{% endfor %}}",
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endset %}",
        style.jinja_turn(conversation, len(conversation.messages)),
        "{% endfor %}",
        style.jinja_answer(),
    ]
    return "".join(lines)
