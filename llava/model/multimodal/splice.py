"""Tensor functions that put image features among embedded text and rows into a batch; no model in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.utils import UserError

# --------------------------------------------------------------------------------------- one row of the batch


@dataclass(frozen=True)
class SplicedRow:
    """One row after its image features stand among its text: embeddings (length, C) and labels (length,)."""

    embeds: torch.Tensor
    labels: torch.Tensor


def assign_features(counts: Sequence[int], available: int) -> list[list[int]]:
    """Say which features each row uses, given how many image tokens it has.

    The reference lets a row without images consume one feature (the dummy image of its text-only samples);
    callers that leave the dummy out are understood as well. Raises UserError when neither count fits.
    """
    with_dummies = sum(max(1, count) for count in counts)
    if available not in (with_dummies, sum(counts)):
        raise UserError(
            f"The batch has {sum(counts)} image tokens in {len(counts)} rows, but {available} images were "
            f"given."
        )
    dummies = available == with_dummies
    rows, start = [], 0
    for count in counts:
        used = max(1, count) if dummies else count
        rows.append(list(range(start, start + used)))
        start += used
    return rows


def splice_rows(
    input_ids: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    features: Sequence[torch.Tensor],
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> list[SplicedRow]:
    """Put image features where image tokens stand.

    input_ids, labels: one 1-D tensor a row, without padding. features: one (length, C) an image. embed: token
    ids (n,) to embeddings (n, C); called once for the whole batch. Image positions get label IGNORE_INDEX.
    """
    counts = [int((ids == IMAGE_TOKEN_INDEX).sum()) for ids in input_ids]
    assigned = assign_features(counts, len(features))
    text = torch.cat([ids[ids != IMAGE_TOKEN_INDEX] for ids in input_ids])
    text_embeds = embed(text).split([len(ids) - count for ids, count in zip(input_ids, counts, strict=True)])
    rows = []
    for ids, row_labels, embeds, indices in zip(input_ids, labels, text_embeds, assigned, strict=True):
        used = [features[index].to(embeds) for index in indices]
        rows.append(_splice_row(ids, row_labels, embeds, used))
    return rows


def _splice_row(
    ids: torch.Tensor, labels: torch.Tensor, embeds: torch.Tensor, features: Sequence[torch.Tensor]
) -> SplicedRow:
    is_image = ids == IMAGE_TOKEN_INDEX
    if not is_image.any():
        # the empty slice keeps tower and projector in the graph of a text-only row, on every rank alike
        return SplicedRow(torch.cat([embeds, *(feature[:0] for feature in features)]), labels)
    positions = is_image.nonzero().flatten().tolist()
    lengths = torch.diff(torch.tensor([-1, *positions, len(ids)])).sub(1).tolist()  # text between images
    text_parts = embeds.split(lengths)
    label_parts = labels[~is_image].split(lengths)
    embed_parts, spliced_labels = [text_parts[0]], [label_parts[0]]
    for feature, text, text_labels in zip(features, text_parts[1:], label_parts[1:], strict=True):
        embed_parts += [feature, text]
        spliced_labels += [labels.new_full((feature.shape[0],), IGNORE_INDEX), text_labels]
    return SplicedRow(torch.cat(embed_parts), torch.cat(spliced_labels))


# ------------------------------------------------------------------------------------------------ whole batch


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length: embeds (B, L, C), labels, attention_mask (bool) and position_ids (B, L)."""

    embeds: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


def pad_rows(rows: Sequence[SplicedRow], *, side: str) -> Batch:
    """Pad rows with zeros on the `side` ("left" or "right"); labels with IGNORE_INDEX, positions with 0."""
    if side not in ("left", "right"):
        raise UserError(f"tokenizer_padding_side is {side!r}; expected 'left' or 'right'.")
    longest = max(row.embeds.shape[0] for row in rows)
    first = rows[0]
    labels = first.labels.new_full((len(rows), longest), IGNORE_INDEX)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=first.labels.device)
    positions = torch.zeros(len(rows), longest, dtype=torch.long, device=first.labels.device)
    embeds = []
    for index, row in enumerate(rows):
        length = row.embeds.shape[0]
        padding = row.embeds.new_zeros(longest - length, row.embeds.shape[1])
        embeds.append(torch.cat((padding, row.embeds) if side == "left" else (row.embeds, padding)))
        place = slice(longest - length, longest) if side == "left" else slice(0, length)
        labels[index, place] = row.labels
        mask[index, place] = True
        positions[index, place] = torch.arange(length, device=positions.device)
    return Batch(torch.stack(embeds), labels, mask, positions)


def padded_left(
    embeds: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Move the padding of embeds (B, L, C), or ids (B, L), to the left of each row, whose right end goes on.

    mask (B, L) tells what is padding; without one, or without padding at the right, nothing changes.
    positions (B, L) move along. Returns the three.
    """
    if mask is None or mask.ndim != 2 or bool(mask[:, -1].all()):
        return embeds, mask, positions
    order = mask.long().argsort(dim=1, stable=True)  # (B, L): padding first, tokens in their order
    embeds = embeds.gather(1, order if embeds.ndim == 2 else order[..., None].expand_as(embeds))
    return (
        embeds,
        mask.gather(1, order),
        None if positions is None else positions.expand_as(order).gather(1, order),
    )


def pack_rows(rows: Sequence[SplicedRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put rows one after the other: embeds (1, L, C), labels (1, L) and position_ids (1, L).

    Positions start again at 0 with each row, by which attention (without a mask and without a cache) tells
    rows apart. A row's first label is IGNORE_INDEX: the token before it belongs to another row.
    """
    labels = []
    for row in rows:
        own = row.labels.clone()
        own[:1] = IGNORE_INDEX
        labels.append(own)
    positions = [torch.arange(len(row.labels), device=row.labels.device) for row in rows]
    embeds = torch.cat([row.embeds for row in rows])
    return embeds[None], torch.cat(labels)[None], torch.cat(positions)[None]


def per_image(images: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Split a list of images, or a 5-D tensor, into one (tiles, 3, H, W) tensor an image."""
    return [image[None] if image.ndim == 3 else image for image in images]


def refuse_image_tokens(input_ids: torch.Tensor) -> None:
    """Raise UserError for image tokens in input that comes without images."""
    count = int((input_ids == IMAGE_TOKEN_INDEX).sum())
    if count:
        raise UserError(
            f"The input has {count} image token{'s' if count > 1 else ''} (<image>), but no images were "
            f"given."
        )
