"""Conversation: a dialog with the rules to render it, and what is done with the images in it."""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation.styles import Piece, SeparatorStyle, Span, Style, Turn, style_of
from llava.images import expand2square
from llava.utils import UserError

# Background of a padded image; training pads with the processor's mean colour, which is the same for CLIP.
PAD_COLOR = (122, 116, 104)

# What a person says in a turn: nothing yet, a text, or (text, image, how the image is resized).
Message = str | tuple[str, Image.Image, str] | None


@dataclasses.dataclass
class Conversation:
    """A dialog and the rules to render it. An empty text counts as a turn that is still open."""

    system: str
    roles: tuple[str, str]
    messages: list[list[Any]]  # pairs of role and Message
    offset: int
    sep_style: SeparatorStyle | Style = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def get_prompt(self) -> str:
        """Render the dialog as the text that is tokenized."""
        return "".join(span.text for span in self.spans())

    def spans(self) -> list[Span]:
        """Render the dialog piece by piece: answers with the separator that ends them are supervised.

        Raises UserError when a LLAMA_2 dialog does not begin with a text of the first role.
        """
        return [span for span in style_of(self.sep_style).spans(self, self._turns()) if span.text]

    def pieces(self) -> list[Piece]:
        """Render the dialog as pieces of template and of what was said, for styles that are `in_pieces`."""
        return [one for one in style_of(self.sep_style).pieces(self, self._turns()) if one.text]

    def _turns(self) -> list[Turn]:
        """List the turns as text; the image of the first moves to its front, or into an exchange of its own.

        Answers are supervised, except the examples that belong to the template (those before `offset`).
        """
        turns = []
        for index, (role, message) in enumerate(self.messages):
            answers = role == self.roles[1] if self.roles[0] != self.roles[1] else index % 2 == 1
            turns.append(Turn(role, _text_of(message), answers and index >= self.offset))
        if self.messages and isinstance(self.messages[0][1], tuple):
            first = turns[0]._replace(text=self.messages[0][1][0].replace(DEFAULT_IMAGE_TOKEN, "").strip())
            if "mmtag" in self.version:
                shown = Turn(self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>", False)
                turns[:1] = [shown, Turn(self.roles[1], "Received.", False), first]
            else:
                turns[0] = first._replace(text=f"{DEFAULT_IMAGE_TOKEN}\n{first.text}")
        return turns

    def append_message(self, role: str, message: Message) -> None:
        """Add a turn; None leaves it open for the model."""
        self.messages.append([role, message])

    def process_image(
        self,
        image: Image.Image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ) -> Image.Image | str:
        """Prepare an image for sending: as PIL, or as base64 text of a file in `image_format`.

        Modes: "Pad" to a square, "Resize" to 336 x 336, "Default" and "Crop" leave the shape. An image
        longer than max_len is shrunk, its short side to at most min_len. Raises UserError for another mode.
        """
        if image_process_mode == "Pad":
            image = expand2square(image, PAD_COLOR)
        elif image_process_mode == "Resize":
            image = image.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise UserError(
                f"image_process_mode is {image_process_mode!r}; expected Pad, Resize, Default or Crop"
            )
        long, short = max(image.size), min(image.size)
        if long > max_len:
            ratio = long / short
            new_short = max(1, int(min(max_len / ratio, min_len, short)))
            new_long = min(max_len, int(new_short * ratio))
            upright = image.height > image.width
            image = image.resize((new_short, new_long) if upright else (new_long, new_short))
        if return_pil:
            return image
        if image_format.upper() in ("JPEG", "JPG") and image.mode not in ("RGB", "L", "CMYK"):
            image = image.convert("RGB")  # JPEG has no transparency and no palette
        buffer = io.BytesIO()
        image.save(buffer, format=image_format)
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    def get_images(self, return_pil: bool = False) -> list[Image.Image | str]:
        """List the images of the user's turns, each prepared by its mode: PIL, or base64 of a PNG file."""
        return [
            self.process_image(message[1], message[2], return_pil=return_pil)
            for _, message in self.messages[self.offset :: 2]
            if isinstance(message, tuple)
        ]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """List the turns as [question, answer] rows for gradio, images as inline JPEG."""
        rows: list[list[str | None]] = []
        for index, (_, message) in enumerate(self.messages[self.offset :]):
            if index % 2:
                rows[-1][1] = message
                continue
            if isinstance(message, tuple):
                text, image, _ = message
                data = self.process_image(image, "Default", image_format="JPEG")
                shown = f'<img src="data:image/jpeg;base64,{data}" alt="user upload image" />'
                message = shown + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            rows.append([message, None])
        return rows

    def copy(self) -> Conversation:
        """Return an independent dialog with the same turns; skip_next is back to False."""
        return dataclasses.replace(self, messages=[list(turn) for turn in self.messages], skip_next=False)

    def dict(self) -> dict[str, Any]:
        """Return what is sent and logged: texts without images, without sep_style and version."""
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": [[role, _text_of(message)] for role, message in self.messages],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


def _text_of(message: Message) -> str | None:
    return message[0] if isinstance(message, tuple) else message
