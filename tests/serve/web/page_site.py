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
