"""--deterministic: the same command on the same machine gives the same numbers."""

from __future__ import annotations

import os

import torch
from transformers import set_seed


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed Python, numpy and torch; new weights, adapters, dropout and the order of samples follow from it.

    deterministic: torch also uses only algorithms that give the same result every time, which may be slower,
    and raises RuntimeError naming an operation that has none. On a CPU runs are the same without it.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # read by transformers
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    set_seed(seed)  # loader workers get seeds of their own from this one, by the Trainer
