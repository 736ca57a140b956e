"""Dialogs in the form of OpenAI's messages: roles, texts, and images between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.conversation import Conversation
from llava.images import load_image_from_data_url
from llava.inference.dialog import Dialog, ImageSource
from llava.inference.prompt import place_question, with_system
from llava.utils import UserError
from llava.video import Video

SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant")
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image_url", "input_image", "image")

Message = Mapping[str, Any]
# Makes an image of the address that a message names: a data: URL, a URL or a path.
Resolve = Callable[[str], ImageSource]


class _Turn(NamedTuple):
    """A message: its role, and texts and images in their order."""

    role: str
    parts: list[str | ImageSource]
    is_image: list[bool]


def is_messages(value: object) -> TypeGuard[Sequence[Message]]:
    """Tell whether a question is a list of messages."""
    return (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(one, Mapping) for one in value)
    )


def read_messages(
    messages: Sequence[Message],
    template: Conversation,
    config: object,
    *,
    has_tower: bool,
    resolve: Resolve | None = None,
) -> Dialog:
    """Return the dialog of messages whose last one is a user's; its answer is wanted.

    Content is a text or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image_url", "image_url":
    {"url": ...}}` (or input_text, output_text, input_image; `{"type": "image", "image": ...}` for a Pillow
    image or a path). Texts of system and developer messages at the beginning take the place of the template's
    system text; messages of one role that follow each other are one turn. The images of a turn go in front of
    its text, unless one stands between texts, or the text says `<image>`: then each stays in its place.
    resolve: makes an image of the address in an image part (default: source_of). Raises UserError, which
    names the message.
    """
    conversation, images = history_of(messages, template, config, has_tower=has_tower, resolve=resolve)
    if conversation.messages[-1][0] != conversation.roles[0]:
        raise UserError("the last message is the assistant's; end with a user's, which is to be answered")
    conversation.append_message(conversation.roles[1], None)
    return Dialog(conversation, images)


def history_of(
    messages: Sequence[Message],
    template: Conversation,
    config: object,
    *,
    has_tower: bool,
    resolve: Resolve | None = None,
) -> tuple[Conversation, list[ImageSource]]:
    """Return the conversation of messages, and its images in order; see read_messages."""
    if not is_messages(messages):
        raise UserError("messages: expected a list of objects with role and content, at least one")
    turns = [_read(index, one, resolve or source_of) for index, one in enumerate(messages)]
    conversation = template.copy()
    n_system = next((index for index, one in enumerate(turns) if one.role not in SYSTEM_ROLES), len(turns))
    if n_system:
        texts = [text for one in turns[:n_system] for text in one.parts if isinstance(text, str)]
        conversation = with_system(template, "\n".join(texts))
    images: list[ImageSource] = []
    for index, turn in _merged(turns, n_system):
        question = turn.role == "user"
        if index == n_system and not question:
            raise UserError(f"message {index}: it is the {turn.role}'s; a user's message comes first")
        if question:
            text = _placed(turn)
            given = [one for one, is_image in zip(turn.parts, turn.is_image, strict=True) if is_image]
            try:
                text, sources = place_question(text, given, config, has_tower=has_tower)
            except UserError as error:
                raise UserError(f"message {index}: {error}") from error
            images += sources
        else:  # an image token that the model spelled out is text
            text = "\n".join(str(one) for one in turn.parts).replace(DEFAULT_IMAGE_TOKEN, "")
        conversation.append_message(conversation.roles[0 if question else 1], text)
    if len(conversation.messages) == len(template.messages):
        raise UserError("messages: none is a user's; add one that is to be answered")
    return conversation, images


def source_of(address: str) -> ImageSource:
    """Return the image of a data: URL; another address or a path as it is, to be opened in its turn."""
    return load_image_from_data_url(address) if address[:5].lower() == "data:" else address


def _merged(turns: Sequence[_Turn], start: int) -> Iterator[tuple[int, _Turn]]:
    """Yield turns from `start` on with the index of their first message, those of one role joined."""
    current: tuple[int, _Turn] | None = None
    for index in range(start, len(turns)):
        turn = turns[index]
        if turn.role in SYSTEM_ROLES:
            raise UserError(
                f"message {index}: a {turn.role} message stands behind others; put it at the beginning"
            )
        if current is not None and current[1].role == turn.role:
            current[1].parts.extend(turn.parts)
            current[1].is_image.extend(turn.is_image)
            continue
        if current is not None:
            yield current
        current = index, turn
    if current is not None:
        yield current


def _placed(turn: _Turn) -> str:
    """Return a question's text, with image tokens where images stand between texts."""
    texts = [str(one) for one, is_image in zip(turn.parts, turn.is_image, strict=True) if not is_image]
    named = any(DEFAULT_IMAGE_TOKEN in one or IMAGE_PLACEHOLDER in one for one in texts)
    first, last = _ends_of_text(turn)
    between = any(is_image and first < index < last for index, is_image in enumerate(turn.is_image))
    if named or not between:
        return "\n".join(texts)
    shown = [
        DEFAULT_IMAGE_TOKEN if is_image else str(one).strip("\n")
        for one, is_image in zip(turn.parts, turn.is_image, strict=True)
    ]
    return "\n".join(shown)


def _ends_of_text(turn: _Turn) -> tuple[int, int]:
    """Return the places of the first and the last part that is a text of more than blanks."""
    places = [
        index
        for index, (one, is_image) in enumerate(zip(turn.parts, turn.is_image, strict=True))
        if not is_image and str(one).strip()
    ]
    return (places[0], places[-1]) if places else (0, 0)


def _read(index: int, message: Message, resolve: Resolve) -> _Turn:
    """Read one message; UserError names it."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"message {index}: its role is {role!r}; expected {', '.join(ROLES)}")
    if isinstance(content, str):
        return _Turn(role, [content], [False])
    if not isinstance(content, (list, tuple)) or not content:
        raise UserError(
            f"message {index}: its content is {_name(content)}; expected a text or a list of parts"
        )
    turn = _Turn(role, [], [])
    for number, part in enumerate(content):
        try:
            one, is_image = _read_part(part, role, resolve)
        except UserError as error:
            raise UserError(f"message {index}, part {number}: {error}") from error
        turn.parts.append(one)
        turn.is_image.append(is_image)
    return turn


def _read_part(part: object, role: str, resolve: Resolve) -> tuple[str | ImageSource, bool]:
    """Return what a part holds, and whether it is an image."""
    if isinstance(part, str):
        return part, False
    if not isinstance(part, Mapping):
        raise UserError(f"it is {_name(part)}; expected an object with a type")
    kind = part.get("type")
    if kind in TEXT_PARTS:
        text = part.get("text")
        if not isinstance(text, str):
            raise UserError(f"its text is {_name(text)}; expected a text")
        return text, False
    if kind not in IMAGE_PARTS:
        raise UserError(f"its type is {kind!r}; expected {', '.join((*TEXT_PARTS, *IMAGE_PARTS))}")
    if role != "user":
        raise UserError(f"an image in a message of the {role}; images go into those of the user")
    if kind == "image":
        source = part.get("image", part.get("url", part.get("path")))
        return (resolve(source) if isinstance(source, str) else _given(source)), True
    source = part.get("image_url")
    url = source.get("url") if isinstance(source, Mapping) else source
    if not isinstance(url, str) or not url:
        raise UserError(f'its image_url is {_name(url)}; expected {{"url": "..."}}')
    return resolve(url), True


def _given(source: object) -> ImageSource:
    if isinstance(source, (Image.Image, Video)) or hasattr(source, "__fspath__"):
        return source  # type: ignore[return-value]
    raise UserError(f"its image is {_name(source)}; expected a Pillow image, a path or a URL")


def _name(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
