"""A chromium for tests of pages; without one they are skipped, which says what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def open_browser(*more: str) -> Iterator[Any]:
    """Yield a browser, started with FLAGS and `more`, and close it: `yield from` it in a fixture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium, or name one in CHROMIUM")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=chromium, headless=True, args=[*FLAGS, *more])
        yield found
        found.close()
