"""What is kept for later prompts: the longest shared beginning, a byte budget, the oldest first out."""

import torch

from llava.inference.engine.kept import Kept, common_length
from llava.inference.engine.kv import GrowingLayer, bytes_of, left_mask


def layers(length):
    return [(torch.ones(1, 2, length, 4), torch.ones(1, 2, length, 4))]


def put(kept, keys):
    kept.put(list(keys), list(range(1, len(keys) + 1)), layers(len(keys)))


def test_shared_beginnings_are_counted():
    for one, other, shared in (
        ([], [1], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3, 4, 5], [1, 2, 3, 9, 5], 3),
        ([1, b"x", 3], [1, b"y", 3], 1),
        ([2, 1], [1, 1], 0),
    ):
        assert common_length(one, other, 0) == shared
        assert common_length(one, other, shared) == 0


def test_the_longest_beginning_is_found_and_one_key_is_left():
    kept = Kept(10**6)
    put(kept, [1, 2, 3])
    put(kept, [1, 2, 3, 4, 5])  # takes the place of its own beginning
    put(kept, [1, 2])  # is there already
    put(kept, [1, 7, 8, 9])
    assert len(kept) == 2
    for keys, positions in (([1, 2, 3, 4, 5], 4), ([1, 7, 8, 5], 3), ([6, 7], 0)):
        found = kept.find(keys)
        assert found.n_positions == positions
        kept.count(found)
    assert (kept.prefix_hits, kept.prefix_misses) == (2, 1)


def test_what_was_used_longest_ago_goes_first():
    size = bytes_of(layers(4))
    kept = Kept(2 * size)
    put(kept, [1, 1, 1, 1])
    put(kept, [2, 2, 2, 2])
    kept.find([1, 1, 1, 1, 1])
    put(kept, [3, 3, 3, 3])
    assert kept.n_bytes == 2 * size
    assert [kept.find([one] * 5).n_positions for one in (1, 2, 3)] == [4, 0, 4]
    put(kept, range(50))  # larger than the whole budget: nothing is dropped for it
    assert len(kept) == 2
    kept.put_features(b"x", torch.ones(8, 2))
    assert kept.features(b"x") is not None and kept.features(b"y") is None
    assert kept.n_bytes <= kept.budget and (kept.image_hits, kept.image_misses) == (1, 1)
    kept.forget()
    assert len(kept) == kept.n_bytes == 0


def test_a_layer_grows_without_losing_what_it_holds():
    layer, parts = GrowingLayer(), []
    for count in (5, 1, 70, 1, 300):
        parts.append(torch.randn(2, 3, count, 4))
        keys, values = layer.update(parts[-1], -parts[-1])
        whole = torch.cat(parts, dim=2)
        assert torch.equal(keys, whole) and torch.equal(values, -whole)
        assert layer.get_seq_length() == whole.shape[2]
    layer.cut(6)
    assert layer.get_seq_length() == 6
    keys, _ = layer.update(parts[1], parts[1])
    assert torch.equal(keys, torch.cat([*parts[:2], parts[1]], dim=2))


def test_masks_leave_the_padding_in_front():
    assert left_mask([3, 3], 3, torch.device("cpu")) is None
    assert left_mask([1, 3, 0], 3, torch.device("cpu")).tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]
