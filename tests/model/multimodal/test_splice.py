"""The tensor functions between tower and LLM, against plain restatements of what they should do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.features import merge_tiles, unpad_image
from llava.model.multimodal.splice import SplicedRow, assign_features, pad_rows, per_image, splice_rows
from llava.utils import UserError

IMAGE, IGNORE = -200, -100
edges = st.integers(1, 24)
pixels = st.integers(1, 3000)
quick = settings(max_examples=80, deadline=None)


# -------------------------------------------------------------------------------------------- unpad_image


@quick
@given(edges, edges, pixels, pixels)
def test_unpad_cuts_equal_borders_off_one_axis(height, width, image_width, image_height):
    plane = torch.arange(height * width).view(1, height, width)
    got = unpad_image(plane, (image_width, image_height))
    assert got.shape[1] == height or got.shape[2] == width
    top, left = (height - got.shape[1]) // 2, (width - got.shape[2]) // 2
    assert torch.equal(got, plane[:, top : height - top, left : width - left])
    # what is left has the image's aspect, to within two patches
    if image_width / image_height > width / height:
        assert abs(got.shape[1] - image_height * width / image_width) < 2
    else:
        assert abs(got.shape[2] - image_width * height / image_height) < 2


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((100, 50), (12, 24)),  # 2:1 on a square map
        ((50, 100), (24, 12)),
        ((100, 100), (24, 24)),
        ((100, 45), (10, 24)),  # 10.8 rows of content: int() gives 10, so the border is 7
        ((100, 40), (10, 24)),  # 9.6 rows: 9, and of the odd surplus of 15 one padded row stays
    ],
)
def test_unpad_rounding(size, shape):
    assert tuple(unpad_image(torch.zeros(3, 24, 24), size).shape[1:]) == shape


# -------------------------------------------------------------------------------------------- merge_tiles

SIDE, TILE, WIDTH = 3, 10, 2  # patches per side, pixels of a tile, channels
NEWLINE = torch.tensor([-7.0, -7.0])


def fields(kind, **changes):
    base = MultimodalConfig.of(object())
    values = {"merge_type": kind, "image_aspect_ratio": "anyres", **changes}
    return MultimodalConfig(**{**base.__dict__, **values})


def merge(kind, columns, rows, size=None, **changes):
    """Merge tiles whose features are their own (y, x) place in the image; the overview is -1."""
    pinpoints = [[columns * TILE, rows * TILE]]
    overview = torch.full((1, SIDE * SIDE, WIDTH), -1.0)
    y, x = torch.meshgrid(torch.arange(rows * SIDE), torch.arange(columns * SIDE), indexing="ij")
    plane = torch.stack((y, x), -1).float()  # (rows * SIDE, columns * SIDE, 2)
    tiles = [
        plane[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE].reshape(-1, WIDTH)
        for r in range(rows)
        for c in range(columns)
    ]
    features = torch.cat((overview, torch.stack(tiles)))
    got = merge_tiles(
        features,
        size or (columns * TILE, rows * TILE),
        settings=fields(kind, image_grid_pinpoints=pinpoints, **changes),
        patches_per_side=SIDE,
        tile_size=TILE,
        image_newline=NEWLINE if "unpad" in kind else None,
    )
    return got, features, plane


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)])
def test_flat_is_tile_after_tile(columns, rows):
    got, features, _ = merge("flat", columns, rows)
    assert torch.equal(got, features.reshape(-1, WIDTH))


@pytest.mark.parametrize(("columns", "rows"), [(2, 1), (1, 3), (2, 2), (3, 2)])
def test_spatial_reads_whole_lines_across_the_image(columns, rows):
    got, _, plane = merge("spatial", columns, rows)
    assert torch.equal(got[: SIDE * SIDE], torch.full((SIDE * SIDE, WIDTH), -1.0))
    assert torch.equal(got[SIDE * SIDE :], plane.reshape(-1, WIDTH))


@pytest.mark.parametrize(("columns", "rows"), [(2, 1), (1, 3), (2, 2), (3, 2)])
def test_unpad_ends_each_line_with_a_newline(columns, rows):
    got, _, plane = merge("spatial_unpad", columns, rows)
    lines = got[SIDE * SIDE :].view(rows * SIDE, columns * SIDE + 1, WIDTH)
    assert torch.equal(lines[:, :-1], plane)
    assert torch.equal(lines[:, -1], NEWLINE.expand(rows * SIDE, WIDTH))


def test_unpad_drops_padded_lines():
    """An image twice as wide as its square grid of 6 x 6 patches keeps 3 lines; 6 - 3 is odd: 4."""
    got, _, plane = merge("spatial_unpad", 2, 2, size=(40, 20))
    assert torch.equal(got[SIDE * SIDE :].view(4, 7, WIDTH)[:, :-1], plane[1:5])


@pytest.mark.parametrize("kind", ["spatial", "spatial_unpad"])
def test_the_overview_alone(kind):
    features = torch.randn(1, SIDE * SIDE, WIDTH)
    newline = NEWLINE if "unpad" in kind else None
    got = merge_tiles(
        features, None, settings=fields(kind), patches_per_side=SIDE, tile_size=TILE, image_newline=newline
    )
    expected = features[0] if newline is None else torch.cat((features[0], NEWLINE[None]))
    assert torch.equal(got, expected)


def test_unpad_needs_image_newline():
    with pytest.raises(UserError, match="no image_newline"):
        merge_tiles(
            torch.zeros(5, 9, 2),
            (20, 20),
            settings=fields("spatial_unpad"),
            patches_per_side=SIDE,
            tile_size=TILE,
            image_newline=None,
        )


def test_wrong_number_of_patches():
    """The tower's CLS token (cls_patch) has no place on the plane."""
    with pytest.raises(UserError, match="4 tiles of 9 patches, found 4 of 10"):
        merge_tiles(
            torch.zeros(5, 10, 2),
            (20, 20),
            settings=fields("spatial", image_grid_pinpoints=[[20, 20]]),
            patches_per_side=SIDE,
            tile_size=TILE,
            image_newline=None,
        )


# ---------------------------------------------------------------------------------------- assign_features

counts = st.lists(st.integers(0, 4), min_size=1, max_size=8)


@quick
@given(counts)
def test_each_image_token_gets_the_next_feature(rows):
    assigned = assign_features(rows, sum(rows))
    assert sum(assigned, []) == list(range(sum(rows)))
    if sum(rows) != sum(max(1, count) for count in rows):
        assert [len(indices) for indices in assigned] == rows


@quick
@given(counts)
def test_a_row_without_image_takes_a_dummy_when_there_are_enough(rows):
    available = sum(max(1, count) for count in rows)
    assigned = assign_features(rows, available)
    assert sum(assigned, []) == list(range(available))
    assert [len(indices) for indices in assigned] == [max(1, count) for count in rows]


@quick
@given(counts, st.integers(0, 40))
def test_any_other_number_is_an_error(rows, available):
    if available in (sum(rows), sum(max(1, count) for count in rows)):
        return
    with pytest.raises(UserError, match=f"{sum(rows)} image tokens in {len(rows)} rows, but {available}"):
        assign_features(rows, available)


# -------------------------------------------------------------------------------------------- splice_rows

TABLE = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))


def embed(ids):
    return TABLE[ids]


def splice_by_hand(ids, labels, features):
    """Walk through the tokens one by one."""
    embeds, out, features = [], [], list(features)
    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        if token == IMAGE:
            feature = features.pop(0)
            embeds += list(feature)
            out += [IGNORE] * len(feature)
        else:
            embeds.append(TABLE[token])
            out.append(label)
    return torch.stack(embeds) if embeds else torch.zeros(0, WIDTH), torch.tensor(out, dtype=torch.long)


row_strategy = st.lists(st.sampled_from([1, 2, 3, 30, IMAGE]), min_size=1, max_size=9)


@quick
@given(st.lists(row_strategy, min_size=1, max_size=4), st.booleans())
def test_splicing_equals_a_walk_through_the_tokens(rows, dummies):
    ids = [torch.tensor(row) for row in rows]
    labels = [torch.where(one == IMAGE, IGNORE, one + 100) for one in ids]
    needed = [max(1, row.count(IMAGE)) if dummies else row.count(IMAGE) for row in rows]
    generator = torch.Generator().manual_seed(sum(needed))
    features = [torch.randn(1 + k % 3, WIDTH, generator=generator) for k in range(sum(needed))]
    got = splice_rows(ids, labels, features, embed)
    # with as many images as tokens no dummies are assumed, unless both readings agree
    used = assign_features([row.count(IMAGE) for row in rows], len(features))
    for row, one_ids, one_labels, indices in zip(got, ids, labels, used, strict=True):
        embeds, expected = splice_by_hand(one_ids, one_labels, [features[i] for i in indices])
        assert torch.equal(row.embeds, embeds)
        assert torch.equal(row.labels, expected)


def test_features_take_the_dtype_of_the_embeddings():
    features = [torch.ones(2, WIDTH, dtype=torch.float64)]
    ids = torch.tensor([1, IMAGE])
    assert splice_rows([ids], [ids], features, embed)[0].embeds.dtype == torch.float32


def test_embeddings_are_looked_up_once_for_the_whole_batch():
    calls = []

    def counting(ids):
        calls.append(len(ids))
        return embed(ids)

    rows = [torch.tensor([1, 2, IMAGE, 3]), torch.tensor([4, 5])]
    splice_rows(rows, rows, [torch.zeros(2, WIDTH)] * 2, counting)
    assert calls == [5]


# ----------------------------------------------------------------------------------------------- pad_rows


@quick
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_padding(lengths, side):
    rows = [SplicedRow(torch.randn(n, WIDTH), torch.arange(n) + 10 * i) for i, n in enumerate(lengths)]
    batch = pad_rows(rows, side=side)
    longest = max(lengths)
    assert batch.embeds.shape == (len(rows), longest, WIDTH)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        place = slice(longest - n, None) if side == "left" else slice(0, n)
        assert torch.equal(batch.embeds[i, place], row.embeds)
        assert torch.equal(batch.labels[i, place], row.labels)
        assert batch.position_ids[i, place].tolist() == list(range(n))
        assert batch.attention_mask[i, place].all()
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert (batch.embeds[~batch.attention_mask] == 0).all()
    assert (batch.labels[~batch.attention_mask] == IGNORE).all()
    assert (batch.position_ids[~batch.attention_mask] == 0).all()


def test_unknown_side():
    with pytest.raises(UserError, match="'top'; expected 'left' or 'right'"):
        pad_rows([SplicedRow(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))], side="top")


def test_per_image_takes_lists_and_five_dimensions():
    images = torch.randn(2, 4, 3, 5, 5)
    assert [tuple(one.shape) for one in per_image(images)] == [(4, 3, 5, 5)] * 2
    mixed = per_image([images[0], images[0, 0]])
    assert [tuple(one.shape) for one in mixed] == [(4, 3, 5, 5), (1, 3, 5, 5)]
