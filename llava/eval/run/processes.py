"""Several processes that share a run (torchrun, accelerate launch): their parts, and waiting for all."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from llava.utils import UserError

Result = TypeVar("Result")

# The others may have many questions left when one is done.
PATIENCE = timedelta(days=30)


class Processes:
    """This process among those of a launcher; alone where there is no launcher."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        self._group: dist.ProcessGroup | None = None
        if self.count > 1:
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=PATIENCE)
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def is_first(self) -> bool:
        """Whether this process prepares, tells and writes what is done once."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._group is not None:
            dist.barrier(self._group)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do the work on every process; a UserError of one is raised on all, so that none waits for it."""
        error: str | None = None
        result: Result | None = None
        try:
            result = work()
        except UserError as caught:
            error = str(caught)
        for one in self.gather(error):
            if one is not None:
                raise UserError(one)
        return cast(Result, result)

    def gather(self, value: Result) -> list[Result]:
        """Return what every process has, in their order, on each."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, self._group)
        return found
