"""--on_bad_sample skip: what a run has left out, noted by all its processes and told at the end."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import weakref
from pathlib import Path

import torch.distributed as dist

from llava.atomic import write_text

logger = logging.getLogger(__name__)

POLICIES = ("error", "skip")
REPORT_FILE = "skipped_samples.json"
# So many bad samples in a row are no accident, for instance a wrong --image_folder.
MAX_IN_A_ROW = 100
NAMES_SHOWN = 100


class SkipLog:
    """Names of the samples that a rank has skipped; its loader workers write to the same file."""

    def __init__(self) -> None:
        handle, self._path = tempfile.mkstemp(prefix="llava-skipped-", suffix=".jsonl")
        os.close(handle)
        weakref.finalize(self, _remove, self._path, os.getpid())  # a run that ends early tidies up as well
        self._known: set[str] = set()  # of this process

    def add(self, name: str, reason: str) -> None:
        """Note a sample, and warn about it when this process meets it first."""
        if name in self._known:
            return
        self._known.add(name)
        logger.warning("skipped (--on_bad_sample skip): %s", reason)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, reason]) + "\n")

    def read(self) -> dict[str, str]:
        """Return what all processes of this rank have noted: name to reason."""
        with open(self._path, encoding="utf-8") as file:
            return dict(json.loads(line) for line in file)

    def close(self) -> None:
        """Delete the file."""
        Path(self._path).unlink(missing_ok=True)


def _remove(path: str, owner: int) -> None:
    """Delete the file of a log; loader workers have copies of the log, which do not own it."""
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)


def report_skipped(dataset: object, output_dir: str | Path) -> dict[str, str]:
    """Say how many samples were skipped and which, and write them to `output_dir`; all ranks call this.

    Returns name to reason of every sample that any rank has skipped.
    """
    log: SkipLog | None = getattr(dataset, "skipped", None)
    if log is None:
        return {}
    found = [log.read()]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        own, found = found[0], [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, own)
    skipped = dict(sorted(item for names in found for item in names.items()))
    log.close()
    if not dist.is_initialized() or dist.get_rank() == 0:
        _tell(skipped, Path(output_dir))
    return skipped


def _tell(skipped: dict[str, str], folder: Path) -> None:
    if not skipped:
        logger.info("no sample was skipped (--on_bad_sample skip)")
        return
    names = list(skipped)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE
    write_text(path, json.dumps(skipped, indent=1, ensure_ascii=False))
    logger.warning(
        "%d sample(s) could not be used and were replaced (--on_bad_sample skip): %s%s; reasons in %s",
        len(names),
        ", ".join(names[:NAMES_SHOWN]),
        more,
        path,
    )
