"""One name of every registered kind of projector, small enough for the tiny towers of 4 x 4 patches."""

from __future__ import annotations

KINDS = (
    "linear",
    "mlp2x_gelu",
    "identity",
    "mlp2x_res2x_gelu",
    "avg_pool2x_mlp2x_gelu",
    "pixel_shuffle2x_mlp2x_gelu",
    "perceiver2x_6tokens",
    "qformer2x_5tokens",
)
WITHOUT_GRID = ("perceiver2x_6tokens", "qformer2x_5tokens")
