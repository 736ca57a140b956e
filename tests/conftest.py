"""Settings and fixtures that all tests share: one thread, no hub, the tiny reference checkpoints."""

import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warming

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# This environment's programs come first, above all its ninja: another version of ninja takes the command
# lines in the log of a compilation for changed ones, and compiles all of it again.
BIN = str(Path(sys.executable).parent)
if os.environ.get("PATH", "").split(os.pathsep)[0] != BIN:
    os.environ["PATH"] = os.pathsep.join([BIN, os.environ.get("PATH", os.defpath)])
# What DeepSpeed compiles (a minute and more of a core) is kept between tests and between runs; another
# environment has a folder of its own, or each of the two would compile again what the other has compiled.
os.environ.setdefault(
    "TORCH_EXTENSIONS_DIR",
    str(Path.home() / ".cache" / "torch_extensions" / sys.prefix.strip("/").replace("/", "-")),
)

DATA = Path(__file__).parent / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of the warm interpreter, once for all workers of a run."""
    if not hasattr(config, "workerinput"):
        warming.make_folder()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if not hasattr(config, "workerinput"):
        warming.remove_folder()


@pytest.fixture(autouse=True)
def same_variables() -> Iterator[None]:
    """Leave to the next test the environment that the warm interpreter knows."""
    with warming.same_variables():
        yield


# files whose slow tests take minutes: they begin first, so that no worker is left alone with one at the end
LONGEST = (
    "test_distributed.py",
    "test_kill_resume.py",
    "test_resume_distributed.py",
    "test_speed.py",
    "test_family_table.py",
    "test_docs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and keep the order otherwise."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


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
