"""The commands of docs/serving.md: each request on the page is sent, as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_engine import FakeEngine, settings
from PIL import Image
from running import running
from warming import python

from llava.serve.openai.app import create_app
from llava.serve.openai.settings import ServedModel, ServerSettings

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"
BLOCKS = [
    (language, code)
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    if ADDRESS in code
]


@pytest.mark.parametrize("language, code", BLOCKS, ids=[f"{one} {n}" for n, (one, _) in enumerate(BLOCKS)])
def test_a_documented_request_is_answered(language: str, code: str, tmp_path: Path) -> None:
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder = tmp_path / "runs/quickstart/data/images/test"
    folder.mkdir(parents=True)
    Image.new("L", (28, 28)).save(folder / "0898.png")
    model = settings().model
    named = ServedModel(("llava-digits",), model.template, model.tokenizer, model.context, model.vocabulary)
    engine = FakeEngine()
    with running(create_app(engine, ServerSettings(named))) as url:
        command = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [python(), "-c"]
        done = subprocess.run(
            [*command, code.replace(ADDRESS, url)], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert "lo " in done.stdout or "wörld" in done.stdout or "llava-digits" in done.stdout
    n_images = [len(one.prompt.images) for one in engine.asked]
    assert n_images[:1] == [int("image_url" in code)]


def test_the_page_has_requests_for_curl_and_for_the_client() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python"} and len(BLOCKS) >= 4


def test_the_flags_of_the_page_are_those_of_the_program() -> None:
    from llava.serve.openai_api import build_parser

    table = PAGE.read_text().rpartition("| flag |")[2]
    named = set(re.findall(r"`(--[\w-]+)`", table))
    assert named == set(build_parser()._option_string_actions) - {"-h", "--help"}
