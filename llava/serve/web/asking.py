"""What a page asks a model, and the errors that it shows when there is no answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation
from llava.serve.errors import bad_request

# The reference's sliders: default and largest value.
TEMPERATURE, MAX_TEMPERATURE = 0.2, 1.0
TOP_P = 0.7
NEW_TOKENS, MAX_NEW_TOKENS = 512, 1024


@dataclass(frozen=True)
class Said:
    """A turn as a model reads it; the answer of the last one is None."""

    text: str
    images: Sequence[Image.Image] = ()
    answer: str | None = None

    def question(self) -> str:
        """Return the text with an image token for each image, in front unless the text places them itself.

        Raises ServeError where the text has another number of them than there are images.
        """
        named = self.text.count(DEFAULT_IMAGE_TOKEN)
        if named not in (0, len(self.images)):
            raise bad_request(
                f"the text says {DEFAULT_IMAGE_TOKEN} {named} time(s), and {len(self.images)} image(s) came "
                "with it; omit it: images are put in front of the text",
            )
        return self.text if named else f"{DEFAULT_IMAGE_TOKEN}\n" * len(self.images) + self.text


@dataclass(frozen=True)
class Question:
    """A dialog for a model, and the settings of the answer."""

    model: str
    turns: Sequence[Said]
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    max_new_tokens: int = NEW_TOKENS

    @property
    def images(self) -> list[Image.Image]:
        """All images, in order."""
        return [image for turn in self.turns for image in turn.images]

    def conversation(self, template: Conversation) -> Conversation:
        """Return the dialog in a template. Raises ServeError."""
        found = template.copy()
        for turn in self.turns:
            found.append_message(found.roles[0], turn.question())
            # an image token that a model spelled out is text
            answer = None if turn.answer is None else turn.answer.replace(DEFAULT_IMAGE_TOKEN, "")
            found.append_message(found.roles[1], answer)
        return found


@dataclass(frozen=True)
class Progress:
    """The answer so far. place: in the queue, 0 where it runs or nobody knows."""

    text: str
    place: int = 0


class Backend(Protocol):
    """Who answers a page."""

    async def models(self) -> list[str]:
        """Return the names of the models that answer. Raises ServeError."""

    def template_of(self, model: str) -> Conversation:
        """Return a model's template."""

    def answer(self, question: Question) -> AsyncGenerator[Progress, None]:
        """Yield the answer as it grows; closing the generator ends it. Raises ServeError."""
