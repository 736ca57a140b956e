"""Dialogs on the way to a worker: messages of role and content, `<image>` where an image stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.conversation import Conversation
from llava.conversation.styles import system_head
from llava.serve.errors import ServeError, bad_request
from llava.serve.workers.frames import MESSAGES

# As many as the OpenAI-compatible server takes.
MAX_MESSAGES = 2000
ROLES = ("system", "user", "assistant")


def messages_of(conversation: Conversation, template: Conversation) -> list[dict[str, str]]:
    """Return a dialog as a worker takes it: without the template's own turns and the open one at its end.

    template: the empty dialog that the conversation began as. A system text that is the template's own is
    left to the worker.
    """
    messages = []
    if conversation.system != template.system:
        messages.append(
            {"role": "system", "content": conversation.system.removeprefix(system_head(template.system))}
        )
    for index, (_, text) in enumerate(conversation.messages[len(template.messages) :]):
        if text is not None:
            messages.append({"role": "assistant" if index % 2 else "user", "content": text})
    return messages


def read_worker_messages(given: object, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Return the messages of a request with their images, as llava.inference.messages reads them.

    Raises ServeError for what is no list of roles and texts, and for another number of placeholders.
    """
    if not isinstance(given, list):
        raise _wrong("messages is no list of objects with role and content")
    if not given:
        raise _wrong("messages is empty: there is nothing to answer; end it with a message of the user")
    if len(given) > MAX_MESSAGES:
        raise _wrong(f"{len(given)} messages came; at most {MAX_MESSAGES} are read")
    said = [_read(index, one) for index, one in enumerate(given)]
    if said[-1][0] != "user":
        raise _wrong(f"the last message is of the {said[-1][0]}; end with one of the user, which is answered")
    named = sum(text.count(DEFAULT_IMAGE_TOKEN) for role, text in said if role == "user")
    if named != len(images):
        raise bad_request(
            f"the user's messages have {named} {DEFAULT_IMAGE_TOKEN} but {len(images)} image(s) came",
            param="images",
        )
    rest = iter(images)
    return [{"role": role, "content": _parts(text, rest) if role == "user" else text} for role, text in said]


def _read(index: int, message: object) -> tuple[str, str]:
    """Return the role and the text of a message; its images are `<image>`."""
    if not isinstance(message, Mapping):
        raise _wrong(f"messages[{index}] is no object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise _wrong(f"messages[{index}] has the role {str(role)[:100]!r}; expected {', '.join(ROLES)}")
    if not isinstance(content, str):
        found = f"the content of messages[{index}] is no text"
        raise _wrong(f"{found}; write {DEFAULT_IMAGE_TOKEN} where an image stands")
    return role, content.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN) if role == "user" else content


def _parts(text: str, images: Iterator[Image.Image]) -> list[dict[str, Any]]:
    """Return a question's text behind the images that it names."""
    named = [next(images) for _ in range(text.count(DEFAULT_IMAGE_TOKEN))]
    return [*({"type": "image", "image": one} for one in named), {"type": "text", "text": text}]


def _wrong(message: str) -> ServeError:
    return bad_request(message, param=MESSAGES)
