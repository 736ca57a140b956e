"""What is asked and what is answered: dialogs, prompts as they stand, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava.conversation import Conversation
from llava.model.multimodal.media import Item
from llava.video import Video

# An image of a question: a Pillow image, a video, or a path or URL that is opened when its turn comes.
ImageSource = Image.Image | Video | str | Path


@dataclass(frozen=True)
class Dialog:
    """A conversation whose last answer is wanted (its last message is None), and its images in order."""

    conversation: Conversation
    images: Sequence[ImageSource] = ()


@dataclass(frozen=True)
class RawPrompt:
    """A prompt without a template: text in which `<image>` stands for each image, or token ids.

    In token ids IMAGE_TOKEN_INDEX stands for each image. stop: the strings that end the answer, beside those
    of SamplingParams. continued: the answer goes on with the prompt's text and keeps its blanks; otherwise it
    is stripped, as in a chat.
    """

    prompt: str | Sequence[int]
    images: Sequence[ImageSource] = ()
    stop: tuple[str, ...] = ()
    continued: bool = False


@dataclass(frozen=True)
class Prompt:
    """A dialog that was read: ids (IMAGE_TOKEN_INDEX for each image), stop strings, positions it takes.

    before: the last ids of a text that the answer continues.
    """

    ids: list[int]
    images: Sequence[ImageSource]
    stop: tuple[str, ...]
    n_positions: int
    before: tuple[int, ...] | None = None


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt whose images are opened."""

    ids: list[int]
    images: list[Item]
    stop: tuple[str, ...]
    n_positions: int
    before: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """An answer, why it ended ("stop", "length" or "context"), and its token ids without an end token."""

    text: str
    finish_reason: str
    ids: tuple[int, ...]
