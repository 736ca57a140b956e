"""From the messages of a request to a dialog in the model's own template, with its images decoded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.images import ImageError
from llava.inference.engine import Dialog
from llava.inference.messages import SYSTEM_ROLES, read_messages
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
    return [_said(message, f"messages[{index}]") for index, message in enumerate(messages)]


def response_turns(given: str | Sequence[InputMessage], instructions: str | None) -> list[Said]:
    """Read the input of /v1/responses; instructions are its system text."""
    turns = [Said("system", (instructions,), "instructions")] if instructions else []
    if isinstance(given, str):
        return [*turns, Said("user", (given,), "input")]
    return turns + [_said(message, f"input[{index}]") for index, message in enumerate(given)]


def _said(message: Message | InputMessage, where: str) -> Said:
    """Read a message of either endpoint, which stands in the field `where`."""
    content = message.content
    if isinstance(content, str):
        return Said(message.role, (content,), where)
    parts = [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content or ())]
    return Said(message.role, tuple(parts), where)


def _part(part: TextPart | RefusalPart | ImagePart | InputText | InputImage, where: str) -> str | ImageRef:
    if isinstance(part, ImagePart):
        return ImageRef(part.image_url.url, f"{where}.image_url.url")
    if isinstance(part, InputImage):
        return ImageRef(part.image_url, f"{where}.image_url")
    return part.refusal if isinstance(part, RefusalPart) else part.text


async def build_dialog(
    turns: Sequence[Said], model: ServedModel, policy: FetchPolicy, *, max_images: int
) -> Dialog:
    """Return the dialog that the turns are, the model's turn being next; see llava.inference.messages.

    A system text behind other turns becomes a paragraph of the question that follows, or that it follows.
    Raises ServeError (400) that names the field.
    """
    _check_images(turns, model, max_images)
    n_characters = sum(len(part) for one in turns for part in one.parts if isinstance(part, str))
    model.check_length(n_characters, turns[0].param.partition("[")[0])
    late = _late_systems(turns)
    turns = [replace(one, role="user") if index in late else one for index, one in enumerate(turns)]
    if turns[-1].role != "user":
        raise bad_request("the last message has to be one of the user", param=turns[-1].param)
    images = await _load([part for one in turns for part in one.parts if isinstance(part, ImageRef)], policy)
    try:
        return read_messages(
            [_message(one, images) for one in turns],
            model.template,
            model.config,
            has_tower=model.takes_images,
        )
    except UserError as error:
        found = re.match(r"message (\d+): ", str(error))
        param = turns[int(found[1]) if found else 0].param
        if found and "[" in param:  # a message, and no text that stands alone
            param += ".content"
        raise bad_request(str(error), param=param) from error


def _late_systems(turns: Sequence[Said]) -> set[int]:
    """Return the places of system texts that stand behind a question or an answer."""
    is_system = [one.role in SYSTEM_ROLES for one in turns]
    first = is_system.index(False) if False in is_system else len(turns)
    return {index for index in range(first, len(turns)) if is_system[index]}


def _message(turn: Said, images: Mapping[ImageRef, Image.Image]) -> dict[str, Any]:
    """Return a turn in the form that the library reads, with its images decoded."""
    if turn.role == "assistant":
        # an image token that a model once spelled out is text; an empty answer must not look open
        text = "\n".join(str(one) for one in turn.parts).replace(DEFAULT_IMAGE_TOKEN, "")
        return {"role": turn.role, "content": text or " "}
    parts = [
        {"type": "image", "image": images[one]}
        if isinstance(one, ImageRef)
        else {"type": "text", "text": one}
        for one in turn.parts
    ]
    return {"role": turn.role, "content": parts or [{"type": "text", "text": ""}]}


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


async def _load(references: Sequence[ImageRef], policy: FetchPolicy) -> dict[ImageRef, Image.Image]:
    """Decode images, one after the other: all of a request together have a limit as well."""
    images: dict[ImageRef, Image.Image] = {}
    total = 0
    for one in references:
        try:
            image = await load_client_image(one.url, policy, name=f"the image of {one.param}")
        except ImageError as error:
            raise ServeError(400, str(error), code="invalid_image", param=one.param) from error
        total += image.width * image.height
        if total > 2 * policy.max_pixels:
            raise bad_request(
                f"the images of the request have more than {2 * policy.max_pixels:,} pixels together",
                param=one.param,
                code="invalid_image",
            )
        images[one] = image
    return images
