"""An engine that reads the digits of tests, for pages: what it says depends on the pixels that reached it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from fake_engine import FakeEngine
from PIL import Image, ImageDraw

from llava.inference.engine import Dialog, EngineDead, Piece, Ticket, Token, Usage

STEP_S = 0.06
CODE = "Here:\n\n```python\nfor n in range(3):\n    print(n)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nDone."


def digit_image(digit: int) -> Image.Image:
    """Draw a digit; each has other pixels."""
    image = Image.new("RGB", (56, 56), "black")
    ImageDraw.Draw(image).text((18, 8), str(digit), fill="white", font_size=36)
    return image


DIGITS = {digit_image(one).tobytes(): one for one in range(10)}


def write_digit(folder: Path, digit: int) -> str:
    """Write a digit's image file."""
    path = folder / f"digit-{digit}.png"
    digit_image(digit).save(path)
    return str(path)


class DigitEngine(FakeEngine):
    """Names the digits of all images of a dialog. A question may ask to count on, for code, or to die."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.middle = threading.Event()  # no answer goes beyond its third word before it is set
        self.middle.set()

    def _answer(self, ticket: Ticket, top_logprobs: int | None) -> None:
        dialog = next(one.prompt for one in self.asked if one.ticket is ticket)
        assert isinstance(dialog, Dialog)
        question = str(dialog.conversation.messages[-2][1]).replace("<image>", "").strip()
        words = self.words_for(question, dialog)
        for index, word in enumerate(words):
            time.sleep(STEP_S)
            if index == 3:
                self.middle.wait(20)
            if ticket.done:
                return
            if "die" in question and index == 3:
                return ticket.end("error", EngineDead("the device was lost"))
            ticket.usage = Usage(10, 0, index + 1)
            ticket.put(Piece(word, (Token(3),)))
        ticket.end("stop")

    def words_for(self, question: str, dialog: Dialog) -> list[str]:
        """Return the answer word by word."""
        if "count" in question:
            return [f"{number} " for number in range(100_000)]
        if "code" in question:
            return CODE.splitlines(keepends=True)
        if "<" in question:
            return [question]
        found = [str(DIGITS.get(one.tobytes(), "?")) for one in dialog.images if isinstance(one, Image.Image)]
        if question == "Which digit is this?":
            return [f"{word} " for word in f"White strokes on black: the digit is {' '.join(found)}.".split()]
        read = f"the digits are {' and '.join(found)}." if found else "there is no image."
        return [f"{word} " for word in f"You asked: {question} So {read}".split()]
