"""Training loss over the positions that have labels, without logits for the others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llava.constants import IGNORE_INDEX


def supervised_loss(
    hidden_states: torch.Tensor, labels: torch.Tensor, lm_head: Any, ignore_index: int = IGNORE_INDEX
) -> torch.Tensor:
    """Mean cross-entropy of the next token, over positions whose next label is not `ignore_index`.

    hidden_states: (B, L, C), the input of `lm_head`; labels: (B, L), not shifted. Equal within rounding to
    the loss over all logits (the matrix product has fewer rows), which for B x L = 16 x 2048 and a vocabulary
    of 32,000 takes 4 GB in float32. Without any label the result is nan, as the mean over nothing is in
    torch.
    """
    targets = labels[:, 1:].to(hidden_states.device)
    supervised = targets != ignore_index  # (B, L - 1)
    logits = lm_head(hidden_states[:, :-1][supervised])  # (n, V)
    return F.cross_entropy(logits.float(), targets[supervised])
