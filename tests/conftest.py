"""Settings and fixtures that all tests share: one thread, no hub, the tiny reference checkpoints."""

import gc
import json
import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).parent / "data"


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Take what the imports made out of the garbage collector's sight: accelerate collects after every run.

    A collection that looks at all modules of torch and transformers takes 0.4 s and more, hundreds of times.
    """
    gc.collect()
    gc.freeze()


def place_checkpoints(root: Path) -> Path:
    """Copy tests/data/checkpoints below `root`, naming the vision tower by its absolute path there."""
    for source in sorted((DATA / "checkpoints").iterdir()):
        target = root / source.name
        shutil.copytree(source, target)
        config_file = target / "config.json"
        if config_file.exists():
            config = json.loads(config_file.read_text())
            if "mm_vision_tower" in config:
                config["mm_vision_tower"] = str(root / "tiny-clip")
                config_file.write_text(json.dumps(config, indent=2))
    return root


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoints recorded from the reference, in a temporary folder (read only by convention)."""
    return place_checkpoints(tmp_path_factory.mktemp("checkpoints"))
