"""llava.train.data.sampler: recorded orders, refusals, one modality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded_training import recorded

from llava.train.data.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)


def _order(case: dict[str, Any]) -> Any:
    given = case["input"]
    if given["kind"] == "chunks":
        return split_to_even_chunks(given["indices"], given["lengths"], given["num_chunks"])
    generator = None
    if given.get("generator_seed") is not None:
        generator = torch.Generator().manual_seed(given["generator_seed"])
    torch.manual_seed(given.get("global_seed", 0))
    if given["kind"] == "sampler":
        sampler = LengthGroupedSampler(
            given["batch"], given["world"], given["lengths"], generator, given["by_modality"]
        )
        return {"len": len(sampler), "order": list(sampler)}
    by_modality = given["kind"] == "modality"
    group = get_modality_length_grouped_indices if by_modality else get_length_grouped_indices
    return group(given["lengths"], given["batch"], given["world"], generator=generator)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in recorded("orders.json")])
def test_recorded_order(case: dict[str, Any]) -> None:
    assert _order(case) == case["expected"]


def test_batches_have_one_modality_until_the_last() -> None:
    lengths = [7 + i % 5 if i % 3 else -(3 + i % 4) for i in range(100)]
    order = get_modality_length_grouped_indices(lengths, batch_size=4, world_size=2)
    assert sorted(order) == list(range(100))
    mixed = [len({lengths[i] > 0 for i in order[start : start + 8]}) for start in range(0, 96, 8)]
    assert sum(count > 1 for count in mixed) <= 1


def test_text_only_data_is_grouped_by_length() -> None:
    lengths = [-(1 + i % 9) for i in range(40)]
    assert sorted(get_modality_length_grouped_indices(lengths, 4, 1)) == list(range(40))


def test_zero_length_is_refused_by_index() -> None:
    with pytest.raises(ValueError, match="sample 1 has length 0"):
        get_modality_length_grouped_indices([3, 0, -2], 1, 1)


def test_sampler_without_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        LengthGroupedSampler(4, 1)
