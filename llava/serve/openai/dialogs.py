"""From the messages of a request to a dialog in the model's own template, with its images decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.images import ImageError
from llava.inference.engine import Dialog
from llava.inference.prompt import place_image_tokens, with_system
from llava.serve.errors import ServeError, bad_request
from llava.serve.openai.schema import (
    ImagePart,
    InputImage,
    InputMessage,
    InputText,
    Message,
    RefusalPart,
    TextPart,
)
from llava.serve.openai.settings import ServedModel
from llava.serve.safe_fetch import FetchPolicy, load_client_image
from llava.utils import UserError


@dataclass(frozen=True)
class ImageRef:
    """An image that a request names, and the field that does."""

    url: str
    param: str


@dataclass(frozen=True)
class Said:
    """A turn: who spoke, and texts and images in their order. param: the field that it stands in."""

    role: str
    parts: tuple[str | ImageRef, ...]
    param: str


def chat_turns(messages: Sequence[Message]) -> list[Said]:
    """Read the messages of /v1/chat/completions."""
    turns = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        content = message.content
        parts: list[str | ImageRef] = [content] if isinstance(content, str) else []
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, TextPart):
                parts.append(part.text)
            elif isinstance(part, RefusalPart):
                parts.append(part.refusal)
            elif isinstance(part, ImagePart):
                parts.append(ImageRef(part.image_url.url, f"{where}.content[{number}].image_url.url"))
        turns.append(Said(message.role, tuple(parts), where))
    return turns


def response_turns(given: str | Sequence[InputMessage], instructions: str | None) -> list[Said]:
    """Read the input of /v1/responses; instructions are its system text."""
    turns = [Said("system", (instructions,), "instructions")] if instructions else []
    if isinstance(given, str):
        return [*turns, Said("user", (given,), "input")]
    for index, message in enumerate(given):
        where = f"input[{index}]"
        content = message.content
        parts: list[str | ImageRef] = [content] if isinstance(content, str) else []
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, InputText):
                parts.append(part.text)
            elif isinstance(part, InputImage):
                parts.append(ImageRef(part.image_url, f"{where}.content[{number}].image_url"))
        turns.append(Said(message.role, tuple(parts), where))
    return turns


async def build_dialog(
    turns: Sequence[Said], model: ServedModel, policy: FetchPolicy, *, max_images: int
) -> Dialog:
    """Return the dialog that the turns are, the model's turn being next.

    System texts at the beginning take the place of the template's own; a later one becomes a paragraph of the
    question behind it. Turns of one role in a row are joined. Raises ServeError (400) that names the field.
    """
    system, spoken = _split_system(turns)
    spoken = _joined(spoken)
    if not spoken or spoken[-1].role != "user":
        where = turns[-1].param
        raise bad_request("the last message has to be one of the user", param=where)
    _check_images(spoken, model, max_images)
    try:
        conversation = with_system(model.template, system) if system is not None else model.template.copy()
    except UserError as error:
        raise bad_request(str(error), param=turns[0].param) from error
    images: list[Image.Image] = []
    for turn in spoken:
        if turn.role == "user":
            images += await _load(turn, policy, total=sum(one.width * one.height for one in images))
            conversation.append_message(conversation.roles[0], _question(turn, model))
        else:
            # an image token that a model once spelled out is text; an empty answer must not look open
            text = _text(turn).replace(DEFAULT_IMAGE_TOKEN, "") or " "
            conversation.append_message(conversation.roles[1], text)
    conversation.append_message(conversation.roles[1], None)
    return Dialog(conversation, images)


def _split_system(turns: Sequence[Said]) -> tuple[str | None, list[Said]]:
    """Return the system text of the beginning, and the other turns; a later one joins its question."""
    system: list[str] = []
    spoken: list[Said] = []
    for turn in turns:
        if turn.role not in ("system", "developer"):
            spoken.append(turn)
            continue
        if any(isinstance(part, ImageRef) for part in turn.parts):
            raise bad_request("images belong into messages of the user", param=turn.param)
        if spoken:
            spoken.append(replace(turn, role="user"))
        else:
            system.append(_text(turn))
    return ("\n".join(system) if system else None), spoken


def _joined(turns: Sequence[Said]) -> list[Said]:
    """Join turns of the same role that follow each other: templates know question and answer in turn."""
    joined: list[Said] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = replace(joined[-1], parts=joined[-1].parts + turn.parts)
        else:
            joined.append(turn)
    return joined


def _check_images(turns: Sequence[Said], model: ServedModel, max_images: int) -> None:
    """Raise ServeError for images where none can be, before any is decoded."""
    n_images = 0
    for turn in turns:
        for part in turn.parts:
            if not isinstance(part, ImageRef):
                continue
            n_images += 1
            if turn.role != "user":
                raise bad_request("images belong into messages of the user", param=part.param)
            if not model.takes_images:
                raise bad_request(f"{model.names[0]} is a text model; it takes no images", param=part.param)
            if n_images > max_images:
                raise bad_request(
                    f"the request has more than {max_images} images", param=part.param, code="too_many_images"
                )


async def _load(turn: Said, policy: FetchPolicy, *, total: int) -> list[Image.Image]:
    """Decode the images of a turn, one after the other; `total` pixels have been decoded before."""
    images = []
    for part in turn.parts:
        if isinstance(part, ImageRef):
            try:
                image = await load_client_image(part.url, policy, name=f"the image of {part.param}")
            except ImageError as error:
                raise ServeError(400, str(error), code="invalid_image", param=part.param) from error
            total += image.width * image.height
            if total > 2 * policy.max_pixels:
                raise bad_request(
                    f"the images of the request have more than {2 * policy.max_pixels:,} pixels together",
                    param=part.param,
                    code="invalid_image",
                )
            images.append(image)
    return images


def _text(turn: Said) -> str:
    return "\n".join(part for part in turn.parts if isinstance(part, str))


def _question(turn: Said, model: ServedModel) -> str:
    """Return a turn of the user with its image tokens.

    Images before or behind all text go in front of it, as in training; those between texts stay there, on
    lines of their own. Where the text itself says `<image>`, that is the place. Raises ServeError.
    """
    text = _text(turn)
    is_image = [isinstance(part, ImageRef) for part in turn.parts]
    n_images = sum(is_image)
    if not text.strip() and not n_images:
        raise bad_request(
            "the message is empty; write some text or give an image", param=f"{turn.param}.content"
        )
    named = DEFAULT_IMAGE_TOKEN in text or IMAGE_PLACEHOLDER in text
    in_one_block = all(is_image[:n_images]) or all(is_image[len(is_image) - n_images :])
    if not in_one_block and not named:
        text = "\n".join(DEFAULT_IMAGE_TOKEN if isinstance(part, ImageRef) else part for part in turn.parts)
    try:
        return place_image_tokens(text, n_images, start_end=model.start_end)
    except UserError as error:
        raise bad_request(str(error), param=f"{turn.param}.content") from error
