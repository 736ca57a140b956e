"""The order in which samples are read: grouped by length, and by modality. Works on integers only."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)


def split_to_even_chunks(indices: list[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal `indices` out to `num_chunks` ranks so that the summed lengths are about equal.

    Each index goes to the rank with the smallest sum that still has room. When the number of indices is not a
    multiple of `num_chunks`, they are distributed in turn instead, as in the reference.
    """
    if len(indices) % num_chunks != 0:
        return [indices[rank::num_chunks] for rank in range(num_chunks)]
    room = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    sums = [0.0] * num_chunks
    for index in indices:
        rank = min(range(num_chunks), key=sums.__getitem__)
        chunks[rank].append(index)
        sums[rank] += lengths[index]
        if len(chunks[rank]) == room:
            sums[rank] = float("inf")
    return chunks


def get_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator | None = None,
    merge: bool = True,
) -> list[int]:
    """Order samples so that each batch of all ranks together holds samples of like length, in random places.

    Samples are shuffled, cut into groups of `world_size * batch_size`, sorted inside the group (longest
    first) and distributed to the ranks. `merge` is accepted because callers of the reference pass it.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    group_size = world_size * batch_size
    order: list[int] = []
    for start in range(0, len(shuffled), group_size):
        group = sorted(shuffled[start : start + group_size], key=lengths.__getitem__, reverse=True)
        for chunk in split_to_even_chunks(group, lengths, world_size):
            order.extend(chunk)
    return order


def get_modality_length_grouped_indices(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Order samples so that each batch has one modality and like lengths.

    lengths: positive with an image, negative without. Data of a single modality is grouped by length alone.
    The last, incomplete groups of the two modalities come together at the end, sorted by index. Raises
    ValueError for a length of zero.
    """
    if any(length == 0 for length in lengths):
        first = list(lengths).index(0)
        raise ValueError(
            f"sample {first} has length 0; grouping by modality needs a positive length (with image) or a "
            "negative one (text only) for every sample"
        )
    if all(length > 0 for length in lengths) or all(length < 0 for length in lengths):
        return get_length_grouped_indices(lengths, batch_size, world_size, generator=generator)

    group_size = world_size * batch_size
    complete: list[list[int]] = []
    rest: list[int] = []
    for sign in (1, -1):
        members = [index for index, length in enumerate(lengths) if length * sign > 0]
        # these two shuffles use the global generator, as in the reference; recorded orders depend on it
        order = get_length_grouped_indices([abs(lengths[index]) for index in members], batch_size, world_size)
        groups = [
            [members[i] for i in order[start : start + group_size]]
            for start in range(0, len(order), group_size)
        ]
        complete.extend(groups[:-1])
        rest.extend(groups[-1])
    shuffled = [complete[i] for i in torch.randperm(len(complete), generator=generator).tolist()]
    return [index for group in shuffled for index in group] + sorted(rest)


class LengthGroupedSampler(Sampler[int]):
    """Yields each index once, grouped by length and, if asked, by modality."""

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        group_by_modality: bool = False,
    ) -> None:
        """Take lengths (signed when `group_by_modality`). Raises ValueError when they are missing."""
        if lengths is None:
            raise ValueError(
                "LengthGroupedSampler got no lengths; pass lengths= with one integer for each sample"
            )
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = list(lengths)
        self.generator = generator
        self.group_by_modality = group_by_modality
        if group_by_modality and len({length > 0 for length in self.lengths}) == 1:
            logger.info("all samples have one modality: grouping by length alone")

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        group = get_modality_length_grouped_indices if self.group_by_modality else get_length_grouped_indices
        return iter(group(self.lengths, self.batch_size, self.world_size, generator=self.generator))
