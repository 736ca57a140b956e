"""The notebook of docs/ is executed as it stands, and its code runs against today's library."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from warming import python

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "llava.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_it_was_executed_from_top_to_bottom():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell["outputs"], "".join(cell["source"])
        assert all(one["output_type"] in ("stream", "execute_result") for one in cell["outputs"])


@pytest.fixture
def quickstart(checkpoints, tmp_path):
    """A folder laid out like the quickstart's, with a tiny model."""
    images = tmp_path / "data" / "images" / "test"
    images.mkdir(parents=True)
    for number in range(9):
        Image.linear_gradient("L").rotate(30 * number).resize((64, 64)).save(images / f"{number}.png")
    (tmp_path / "llava-digits").symlink_to(checkpoints / "llava-tiny-v1.5")
    return tmp_path


@pytest.mark.slow
def test_its_code_runs(quickstart):
    script = "\n\n".join("".join(cell["source"]) for cell in code_cells())
    done = subprocess.run(
        [python(), "-c", script],
        env={**os.environ, "LLAVA_NOTEBOOK_ROOT": str(quickstart), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = "".join("".join(one["text"]) for cell in code_cells() for one in cell["outputs"] if "text" in one)
    for line in told.splitlines():  # what does not depend on the model is told word for word
        if line.startswith(("the question", "the image", "temperature")):
            assert line in done.stdout
    assert "names 2 image" in done.stdout
