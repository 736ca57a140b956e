"""docs/families.md: its families are those that are tested, and its lines are what their entries say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from packaging.version import Version
from table import CORE, OTHERS
from transformers import __version__

DOCS = Path(__file__).parents[3] / "docs"
_spec = importlib.util.spec_from_file_location("update_families", DOCS / "update_families.py")
assert _spec is not None and _spec.loader is not None
update = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(update)
LINES = {found[1]: found[0] for found in update.ROW.finditer(update.PAGE.read_text())}


def test_the_page_has_every_family_that_is_tested() -> None:
    assert sorted(LINES) == sorted({*CORE, *OTHERS, "mpt"})  # MPT: tests/model/test_families.py


@pytest.mark.parametrize(
    "base_type", ["mpt", *CORE, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)]
)
@pytest.mark.skipif(Version(__version__) < Version("5.23"), reason="the page is made with transformers 5.23")
def test_a_line_is_what_the_entry_says(base_type: str) -> None:
    assert update.row(base_type) == LINES[base_type], "run python docs/update_families.py"
