"""Training loss over the positions that have labels, without logits for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import IGNORE_INDEX


@dataclass
class SupervisedOutput(CausalLMOutputWithPast):
    """Output of a forward pass without logits; also says what each sample has added to the loss.

    loss_sums: summed token losses, without graph; loss_counts: labelled tokens; both float32 (samples,).
    """

    loss_sums: torch.Tensor | None = None
    loss_counts: torch.Tensor | None = None


def supervised_loss(
    hidden_states: torch.Tensor, labels: torch.Tensor, lm_head: Any, ignore_index: int = IGNORE_INDEX
) -> torch.Tensor:
    """Mean cross-entropy of the next token, over positions whose next label is not `ignore_index`.

    hidden_states: (B, L, C), the input of `lm_head`; labels: (B, L), not shifted. Equal within rounding to
    the loss over all logits (the matrix product has fewer rows), which for B x L = 16 x 2048 and a vocabulary
    of 32,000 takes 4 GB in float32. Without any label the result is nan, as the mean over nothing is in
    torch.
    """
    token_losses, _ = _token_losses(hidden_states, labels, lm_head, ignore_index)
    return token_losses.mean()


def losses_of_samples(
    hidden_states: torch.Tensor, labels: torch.Tensor, lm_head: Any, samples: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `supervised_loss`, and its sum and number of tokens in each of `count` samples: (count,) twice.

    samples: (B, L), the sample that a position belongs to.
    """
    token_losses, supervised = _token_losses(hidden_states, labels, lm_head, IGNORE_INDEX)
    members = samples[:, 1:].to(supervised.device)[supervised]  # (n,)
    found = token_losses.detach()
    sums = found.new_zeros(count).index_add_(0, members, found)
    counts = found.new_zeros(count).index_add_(0, members, torch.ones_like(found))
    return token_losses.mean(), sums, counts


def _token_losses(
    hidden_states: torch.Tensor, labels: torch.Tensor, lm_head: Any, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of labelled tokens (n,), and which positions of (B, L - 1) those are."""
    targets = labels[:, 1:].to(hidden_states.device)
    supervised = targets != ignore_index  # (B, L - 1)
    logits = lm_head(hidden_states[:, :-1][supervised])  # (n, V)
    return F.cross_entropy(logits.float(), targets[supervised], reduction="none"), supervised
