"""Images of digits: dark ink on white paper, in files and as tensors, and small random distortions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 64  # pixels of an image file


@dataclass(frozen=True)
class Digits:
    """One half of scikit-learn's digits: `ink` (n, 8, 8) from 0 to 1, `labels` (n,), `first` index."""

    ink: np.ndarray
    labels: np.ndarray
    first: int


def load_halves() -> tuple[Digits, Digits]:
    """Load training and test half, unshuffled, as scikit-learn's classification example splits them."""
    digits = load_digits()
    ink = (digits.images / 16.0).astype(np.float32)
    middle = len(ink) // 2
    return (
        Digits(ink[:middle], digits.target[:middle], 0),
        Digits(ink[middle:], digits.target[middle:], middle),
    )


def render(ink: np.ndarray) -> torch.Tensor:
    """Enlarge ink (n, 8, 8) to images (n, 64, 64): 0 is ink, 1 is paper."""
    paper = 1.0 - torch.from_numpy(ink)[:, None]  # (n, 1, 8, 8)
    large = F.interpolate(paper, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return large[:, 0].clamp(0.0, 1.0)  # (n, 64, 64)


def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotate, scale, shear, shift and bend images (n, side, side) a little, each in its own way."""
    count, side = len(images), images.shape[-1]

    def spread(width: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * width

    angle = spread(math.radians(15))
    x_scale, y_scale, shear = 1 + spread(0.15), 1 + spread(0.15), spread(0.2)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([x_scale * cos, shear - y_scale * sin, spread(0.25)], dim=1),
        torch.stack([x_scale * sin, y_scale * cos, spread(0.25)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [count, 1, side, side], align_corners=False)
    bend = torch.randn(count, 2, 4, 4, generator=generator) * 0.08
    bend = F.interpolate(bend, size=(side, side), mode="bicubic", align_corners=False)
    grid = grid + bend.permute(0, 2, 3, 1)  # (n, side, side, 2)
    ink = 1.0 - images[:, None]  # what lies outside is paper
    return 1.0 - F.grid_sample(ink, grid, align_corners=False)[:, 0]


def write_images(images: torch.Tensor, paths: list[Path]) -> None:
    """Write images (n, side, side) with values from 0 to 1 as grey PNG files."""
    values = (images * 255).round().to(torch.uint8).numpy()
    for value, path in zip(values, paths, strict=True):
        Image.fromarray(value).save(path, compress_level=1)
