"""From a question to a prompt: image tokens, the template, and the strings that end an answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import (
    Conversation,
    SeparatorStyle,
    choose_template,
    encode_pieces,
    find_template,
    style_of,
    template_of,
    warn_of_unknown_template,
)
from llava.conversation.styles import system_head
from llava.inference.dialog import Dialog, ImageSource
from llava.mm_utils import tokenizer_image_token
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.media import Item, as_item
from llava.utils import UserError, text_fault
from llava.video import Video

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Images of a question: Pillow images, paths or URLs; one alone needs no list.
Images = Sequence[ImageSource] | ImageSource


def one_or_many(image: Images | None, images: Images | None) -> Images:
    """Return the images of a question that were given as `image=` or `images=`; None is none."""
    if image is None:
        return () if images is None else _listed(images)
    if images is not None and _listed(images):
        raise UserError("image and images were both given; give all of them as images")
    return _listed(image)


def _listed(images: object) -> list[ImageSource]:
    """Return images, or a single one, as a list; raises UserError for what is neither."""
    if isinstance(images, (str, Path, Image.Image, Video)):
        return [images]
    if not isinstance(images, (Sequence, Iterator)) or isinstance(images, (bytes, bytearray, memoryview)):
        raise UserError(
            f"the image is a {type(images).__name__}; expected a Pillow image (of an array: "
            "PIL.Image.fromarray), a path or a URL, or a list of them"
        )
    return list(images)


def place_image_tokens(text: str, n_images: int, *, start_end: bool) -> str:
    """Return the question with one image token for each of its `n_images` images.

    Images go where `<image>` or `<image-placeholder>` stands, else one line each in front of the text. With
    `start_end` (config.mm_use_im_start_end) each token is wrapped as `<im_start><image><im_end>`. Raises
    UserError when the text names another number of images.
    """
    wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
    text = text.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN).replace(wrapped, DEFAULT_IMAGE_TOKEN)
    named = text.count(DEFAULT_IMAGE_TOKEN)
    if named == 0:
        text = f"{DEFAULT_IMAGE_TOKEN}\n" * n_images + text
    elif named != n_images:
        raise UserError(
            f"the question names {named} image(s) ({DEFAULT_IMAGE_TOKEN} or {IMAGE_PLACEHOLDER}) but "
            f"{n_images} came with it; write one for each image, or none to put all images in front"
        )
    return text.replace(DEFAULT_IMAGE_TOKEN, wrapped) if start_end else text


def read_question(text: str, images: Images, config: object, *, has_tower: bool) -> tuple[str, list[Item]]:
    """Return a question with its image tokens in place, and its images opened; see place_question."""
    question, sources = place_question(text, images, config, has_tower=has_tower)
    return question, [as_item(one) for one in sources]


def place_question(
    text: str, images: Images, config: object, *, has_tower: bool
) -> tuple[str, list[ImageSource]]:
    """Return a question with its image tokens in place, and its images as they were given.

    images: Pillow images, paths or URLs. Raises UserError for an empty question, an unreadable image, a wrong
    number of image tokens, and for an image where there is no vision tower.
    """
    sources = _listed(images)
    if not isinstance(text, str):
        raise UserError(f"the question is a {type(text).__name__}; expected a text")
    if fault := text_fault(text):
        raise UserError(f"the question {fault}")
    if not text.strip() and not sources:
        raise UserError("the question is empty; write some text or give an image")
    if sources and not has_tower:
        raise UserError("an image was given, but this model has no vision tower; ask it without an image")
    start_end = MultimodalConfig.of(config).use_im_start_end
    return place_image_tokens(text, len(sources), start_end=start_end), sources


def with_system(template: Conversation, system: str) -> Conversation:
    """Return the template with another system text, in the markup that the template has around it."""
    if not isinstance(system, str):
        raise UserError(f"system is a {type(system).__name__}; expected a text")
    if fault := text_fault(system):
        raise UserError(f"system {fault}")
    if template.sep_style is SeparatorStyle.PLAIN:
        raise UserError("this template has no place for a system text; leave system out")
    changed = template.copy()
    changed.system = system_head(template.system) + system
    return changed


def new_dialog(
    template: Conversation, text: str, images: Images, config: object, *, has_tower: bool
) -> Dialog:
    """Return a dialog with one question whose answer is wanted; its images stay as they were given."""
    question, sources = place_question(text, images, config, has_tower=has_tower)
    conversation = template.copy()
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    return Dialog(conversation, sources)


def stop_strings(conversation: Conversation) -> tuple[str, ...]:
    """Return the strings that end an answer in this template (the reference's rule, without empty ones)."""
    return template_of(conversation).stop_strings()


def pick_conv_mode(given: str | None, model_name: str, config: object | None = None) -> tuple[str, str]:
    """Return (key of conv_templates, sentence that says why) for a checkpoint.

    A given key wins; a warning is logged when another one is inferred. Raises UserError for an unknown key.
    """
    if given is not None:
        find_template(given)
    inferred, reason = choose_template(model_name, config)
    if given is None:
        warn_of_unknown_template(config, inferred)
        return inferred, reason
    if given != inferred:
        logger.warning(
            "the conversation mode inferred from this checkpoint is %s (%s), but --conv-mode is %s; using %s",
            inferred,
            reason,
            given,
            given,
        )
        return given, f"given as --conv-mode; the checkpoint suggests {inferred}"
    return given, f"given as --conv-mode; the checkpoint agrees: {reason}"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, n_images: int) -> list[int]:
    """Return the ids of a dialog's prompt, IMAGE_TOKEN_INDEX for each image.

    Raises UserError when the prompt does not have one image token for each image.
    """
    style = style_of(conversation.sep_style)
    if style.in_pieces:
        ids = encode_pieces(conversation.pieces(), tokenizer, start_token=style.start_token).ids
    else:
        ids = list(tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX))
    check_image_count(ids, n_images)
    return ids


def check_image_count(ids: Sequence[int], n_images: int) -> None:
    """Raise UserError unless a prompt has one image token for each image."""
    n_tokens = ids.count(IMAGE_TOKEN_INDEX)
    if n_tokens != n_images:
        raise UserError(
            f"the prompt has {n_tokens} image token(s) but the dialog has {n_images} image(s); "
            f"write {DEFAULT_IMAGE_TOKEN} once for each image"
        )
