"""Inputs by formula, and the values that the reference gave for them (tests/data/model, see its README)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data" / "model"
RECORDED = json.loads((DATA / "recorded.json").read_text())
IMAGE, IGNORE = -200, -100

# key -> (checkpoint folder, folder of its base)
MODELS = {
    "v15": ("llava-tiny-v1.5", None),
    "v15_st": ("llava-tiny-v1.5-st", None),
    "v16": ("llava-tiny-v1.6", None),
    "v16_mistral": ("llava-tiny-v1.6-mistral", None),
    "v0": ("llava-tiny-v0", None),
    "projector": ("llava-tiny-pretrain", "vicuna-tiny"),
    "lora": ("llava-tiny-v1.5-lora", "vicuna-tiny"),
    "mpt": ("llava-tiny-mpt", None),
    "plain": ("vicuna-tiny", None),
}
ANYRES = ("v16", "v16_mistral")
# (width, height) of images, odd on purpose
SIZES = [(100, 40), (37, 90), (60, 60), (300, 41), (17, 130), (112, 112), (55, 57)]
# rows of a batch: numbers are text tokens, "i" an image; and how many images go in
LAYOUTS: dict[str, tuple[list[list[int | str]], int]] = {
    "text_only": ([[9]], 1),
    "one_image": ([[5, "i", 6]], 1),
    "two_images": ([[3, "i", 4, "i", 5]], 2),
    "adjacent_images": ([["i", "i", 4]], 2),
    "image_last": ([[6, "i"]], 1),
    "mixed": ([[7], [4, "i", 5], [2, "i", 3, "i", 6]], 4),
    "two_rows": ([[4, "i", 9], [2, "i", 3]], 2),
}


def wave(shape: tuple[int, ...], k: int) -> np.ndarray:
    """Return irregular values in about [-2, 2], float64."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    x = np.sin(i * (0.37 + 0.011 * k) + k) + 0.8 * np.cos(i * i * 1e-3 * (1 + 0.1 * k) + 2 * k)
    return x.reshape(shape)


def fingerprint(values: torch.Tensor, numbers: int = 2) -> np.ndarray:
    """Shrink the last axis to a few numbers, by a product with a fixed matrix."""
    array = values.detach().double().numpy()
    return array @ wave((array.shape[-1], numbers), 0)


def images(model: Any, count: int, k: int) -> torch.Tensor:
    """Return images (count, 3, S, S) for the model's tower."""
    edge = model.get_vision_tower().config.image_size
    return torch.from_numpy(wave((count, 3, edge, edge), k).astype(np.float32))


def grid(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (columns, rows) of tiles of an image."""
    from llava.mm_utils import get_anyres_image_grid_shape

    edge = model.get_vision_tower().config.image_size
    return get_anyres_image_grid_shape(size, model.config.image_grid_pinpoints, edge)


def crops(model: Any, sizes: list[tuple[int, int]], k: int) -> list[torch.Tensor]:
    """Return the tiles (1 + columns * rows, 3, S, S) of each image."""
    shapes = [grid(model, size) for size in sizes]
    return [images(model, 1 + columns * rows, k + i) for i, (columns, rows) in enumerate(shapes)]


def ids(model: Any, count: int, k: int) -> list[int]:
    """Return `count` token ids by formula."""
    rows = model.get_input_embeddings().weight.shape[0]
    return [(k * 37 + j * j * 5 + j * 11) % (rows - 10) + 3 for j in range(count)]


def batch(
    model: Any, layout: list[list[int | str]], k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, labels and mask (B, T) of a layout, padded on the right; first halves are unsupervised."""
    all_ids, all_labels = [], []
    for r, parts in enumerate(layout):
        row: list[int] = []
        labels: list[int] = []
        for j, part in enumerate(parts):
            if isinstance(part, str):
                row.append(IMAGE)
                labels.append(IGNORE)
            else:
                tokens = ids(model, part, k + 3 * r + j)
                row += tokens
                labels += tokens if j else [IGNORE] * (part // 2) + tokens[part // 2 :]
        all_ids.append(row)
        all_labels.append(labels)
    longest = max(map(len, all_ids))
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in all_ids]
    padded = [row + [0] * (longest - len(row)) for row in all_ids]
    labels_padded = [row + [IGNORE] * (longest - len(row)) for row in all_labels]
    return torch.tensor(padded), torch.tensor(labels_padded), torch.tensor(mask)


@contextlib.contextmanager
def changed(model: Any, **fields: Any) -> Iterator[None]:
    """Set config fields for a while."""
    old = {name: getattr(model.config, name, None) for name in fields}
    for name, value in fields.items():
        setattr(model.config, name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(model.config, name, value)


def training_batch(model: Any, key: str, k: int = 7) -> dict[str, Any]:
    """Return keyword arguments of a labelled batch: text only, one image, two images."""
    row_ids, labels, mask = batch(model, LAYOUTS["mixed"][0], k)
    arguments = {"input_ids": row_ids, "labels": labels, "attention_mask": mask.bool()}
    if key in ANYRES:
        sizes = [SIZES[2], SIZES[0], SIZES[1], SIZES[4]]
        return {**arguments, "images": crops(model, sizes, k), "image_sizes": sizes}
    return {**arguments, "images": images(model, 4, k)}


def one_image(model: Any, key: str) -> dict[str, Any]:
    """Return `images` (and `image_sizes`) of one image."""
    if key in ANYRES:
        return {"images": crops(model, [SIZES[0]], 9), "image_sizes": [SIZES[0]]}
    return {"images": images(model, 1, 9)}


def golden(key: str) -> dict[str, np.ndarray]:
    """Read the recorded arrays of a model."""
    with np.load(DATA / f"{key}.npz") as stored:
        return {name: stored[name] for name in stored.files}


def check_close(got: Any, want: Any, atol: float, rtol: float = 0.0, what: str = "") -> None:
    """Assert equal shapes, and values within atol + rtol * |want|."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, recorded {want.shape}"
    worst = float((np.abs(got - want) - rtol * np.abs(want)).max()) if got.size else 0.0
    assert worst <= atol, f"{what}: differs by {worst:.3g}"
