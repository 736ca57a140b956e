"""The page in a browser with the model that scripts/quickstart.sh has trained, where it has run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_site import answers, ask, go_to, upload
from running import free_port
from warming import python

ROOT = Path(__file__).resolve().parents[3]
RUN = ROOT / "runs" / "quickstart"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Serve the quickstart's model with `python -m llava.serve` and return where its page is."""
    if not (RUN / "result.json").exists():
        pytest.skip("runs/quickstart has no result: bash scripts/quickstart.sh makes it")
    words = ["--model-path", str(RUN / "llava-digits"), "--device", "cpu", "--port", str(free_port())]
    command = [python(), "-m", "llava.serve", *words, "--log-dir", str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("The page is at ").strip()
        process.terminate()


@pytest.mark.slow
def test_a_digit_of_the_quickstart_is_uploaded_and_read(url: str, browser: Any) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    chat = json.loads((RUN / "result.json").read_text())["chat"]
    page = browser.new_page()
    go_to(page, url, "llava-digits")
    upload(page, str(RUN / chat["image"]))
    ask(page, chat["question"])
    expect(answers(page).last).to_have_text(chat["answer"], timeout=30_000)
    page.close()
