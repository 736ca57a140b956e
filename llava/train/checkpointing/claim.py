"""The output folder while a run uses it: kept from other runs, left as it was by a start that fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from transformers import TrainerCallback

from llava.atomic import atomic_file
from llava.train.checkpointing.manifest import MANIFEST_FILE
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

LOCK_FILE = ".running"


class OutputLock:
    """Keeps a second run out of an output folder, where each would delete what the other writes.

    The operating system releases it when the process ends, however that happens.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock, where there are locks. Raises UserError when another process has it."""
        self._path = folder / LOCK_FILE
        self._file: TextIO | None = None
        try:
            import fcntl

            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another run is writing to {folder}; wait for its end, or choose another --output_dir"
            ) from error
        except (ImportError, OSError):  # Windows, some network disks; what cannot be written is said later
            if self._file is not None:
                self._file.close()
            self._file = None

    def release(self) -> None:
        """Give the folder free."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


class OutputClaim(TrainerCallback):
    """Holds the output folder of a run. A run that fails before its first step leaves the folder as it was.

    folder: None for a process that writes nothing. As a callback it learns when the first step is done.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock: OutputLock | None = None
        self._made: list[Path] = []  # folders that were not there, the innermost first
        self._manifest: bytes | None = None  # that of the run before
        self._stepped = False

    def __enter__(self) -> OutputClaim:
        """Take the folder. Raises UserError when another run has it."""
        if self._folder is not None:
            folder = self._folder.absolute()
            self._made = [one for one in (folder, *folder.parents) if not one.exists()]
            self._lock = OutputLock(self._folder)
            with contextlib.suppress(OSError):
                self._manifest = (folder / MANIFEST_FILE).read_bytes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder free; after a start that failed, take away what it wrote."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # the disk may be what failed
                if kind is not None and not self._stepped:
                    self._undo()
            self._lock.release()
        if kind is not None and not self._stepped:
            for folder in self._made:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    folder.rmdir()

    def _undo(self) -> None:
        assert self._folder is not None
        file = self._folder / MANIFEST_FILE
        if self._manifest is None:
            file.unlink(missing_ok=True)
        elif file.read_bytes() != self._manifest:
            with atomic_file(file) as scratch:
                scratch.write_bytes(self._manifest)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Note that the run has begun; from now on a failure leaves what it wrote."""
        self._stepped = True
