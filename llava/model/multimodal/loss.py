"""Training loss over the positions that have labels, without logits for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import IGNORE_INDEX


@dataclass
class SupervisedOutput(CausalLMOutputWithPast):
    """Output of a forward pass without logits; also says what each sample has added to the loss.

    loss_sums: summed token losses, without graph; loss_counts: labelled tokens; both float32 (samples,).
    tokens_read: positions without padding that the LLM reads, image features among them; (samples,).
    """

    loss_sums: torch.Tensor | None = None
    loss_counts: torch.Tensor | None = None
    tokens_read: torch.Tensor | None = None


def supervised_positions(
    labels: torch.Tensor, ignore_index: int = IGNORE_INDEX
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions, counted through labels (B, L), whose next token is a label, and those tokens.

    Both (n,). Only there are logits needed: for B x L = 16 x 2048 and a vocabulary of 32,000 all of them
    take 4 GB in float32.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=ignore_index).flatten()  # (B * L,)
    positions = (following != ignore_index).nonzero().flatten()
    return positions, following[positions]


def losses_of_samples(
    logits: torch.Tensor, targets: torch.Tensor, samples: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy, and its sum and number of tokens in each of `count` samples: (count,).

    logits: (n, V); targets: (n,); samples: (n,), the sample that a token belongs to. Without any token the
    mean is nan, as the mean over nothing is in torch.
    """
    token_losses = F.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")  # (n,)
    found, members = token_losses.detach(), samples.to(logits.device)
    sums = found.new_zeros(count).index_add_(0, members, found)
    counts = found.new_zeros(count).index_add_(0, members, torch.ones_like(found))
    return token_losses.mean(), sums, counts


def read_by(samples: torch.Tensor, mask: torch.Tensor | None, count: int) -> torch.Tensor:
    """Return how many positions each of `count` samples has without its padding: (count,).

    samples: (B, L), the sample that a position belongs to; mask: (B, L), 0 for padding, None without any.
    """
    kept = torch.ones_like(samples) if mask is None else mask.to(samples)
    return kept.new_zeros(count).index_add_(0, samples.flatten(), kept.flatten())
