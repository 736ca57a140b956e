"""A model and the files of records with videos, for the tests that train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from video_data import load_model_of_tiles, write_media


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def assistant(checkpoints: Path) -> Any:
    return load_model_of_tiles(checkpoints)
