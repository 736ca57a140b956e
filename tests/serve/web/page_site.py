"""A running page as the tests of the page see it, and the sizes of windows that they open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from page_engine import DigitEngine

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PLACEHOLDER = "Ask about an image"


class Site:
    """A running page, the engine behind it, and the log that it writes."""

    def __init__(self, url: str, engine: DigitEngine, log: Path) -> None:
        self.url, self.engine, self.log = url, engine, log

    def lines(self) -> list[dict[str, Any]]:
        """Read the log."""
        files = sorted(self.log.glob("*-conv.json"))
        return [json.loads(line) for one in files for line in one.read_text().splitlines()]


def go_to(page: Any, url: str, model: str = "llava-test") -> None:
    """Load the page and wait until it has chosen the model: what is asked before gets no answer."""
    page.goto(url)
    page.get_by_placeholder(PLACEHOLDER).wait_for()
    page.wait_for_function(f"document.querySelector('#model input')?.value == '{model}'")


def answers(page: Any) -> Any:
    """Return the places of the answers."""
    return page.get_by_test_id("bot")


def questions(page: Any) -> Any:
    """Return the places of the questions."""
    return page.get_by_test_id("user")


def upload(page: Any, path: str) -> None:
    """Give a file to the question and wait until it is shown."""
    shown = page.locator(".thumbnail-item").count()
    page.locator('#message input[type="file"]').set_input_files(path)
    page.locator(".thumbnail-item").nth(shown).wait_for()


def ask(page: Any, text: str) -> None:
    """Send a question."""
    box = page.get_by_placeholder(PLACEHOLDER)
    box.fill(text)
    box.press("Enter")
