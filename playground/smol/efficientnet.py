"""EfficientNet-Lite (https://arxiv.org/abs/1905.11946, without squeeze and excitation) for transformers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

EPSILON = 1e-3  # of every batch norm


class EfficientNetLiteConfig(PreTrainedConfig):
    """Widths, strides, kernels, repeats and expansions of the stages; those of Lite0 by default."""

    model_type = "efficientnet_lite"
    image_size: int = 224
    classes: int = 1000
    stem_size: int = 32
    head_size: int = 1280
    hidden_sizes: tuple[int, ...] | list[int] = (16, 24, 40, 80, 112, 192, 320)
    strides: tuple[int, ...] | list[int] = (1, 2, 2, 2, 1, 2, 1)
    kernels: tuple[int, ...] | list[int] = (3, 3, 5, 3, 5, 5, 3)
    depths: tuple[int, ...] | list[int] = (1, 2, 2, 3, 3, 4, 1)
    expansions: tuple[int, ...] | list[int] = (1, 6, 6, 6, 6, 6, 6)

    @property
    def num_hidden_layers(self) -> int:
        """The stages, and the last convolution."""
        return len(self.hidden_sizes) + 1

    def width(self, layer: int) -> int:
        """Return the channels of a hidden state; 0 is the stem's."""
        return (self.stem_size, *self.hidden_sizes, self.head_size)[layer]

    def edge(self, layer: int) -> int:
        """Return the edge in pixels that a position of a hidden state stands for; 2 for the stem's."""
        edge = 2
        for stride in self.strides[:layer]:
            edge *= stride
        return edge


class Convolution(nn.Module):
    """A convolution padded as TensorFlow does, and ReLU6 where it is wanted; its batch norm is folded in."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        stride: int = 1,
        *,
        depthwise: bool = False,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, groups=before if depthwise else 1)
        self.act = act

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (N, before, H, W) to (N, after, H / stride, W / stride), rounded up."""
        hidden = self.conv(same_padding(hidden, self.conv.kernel_size[0], self.conv.stride[0]))
        return F.relu6(hidden) if self.act else hidden


def same_padding(hidden: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Pad (N, C, H, W) with zeros as TensorFlow's "SAME": the odd row and column stand below and right."""
    sides: list[int] = []
    for edge in (hidden.shape[-1], hidden.shape[-2]):
        whole = max(0, (-(-edge // stride) - 1) * stride + kernel - edge)
        sides += [whole // 2, whole - whole // 2]
    return F.pad(hidden, sides) if any(sides) else hidden


class Block(nn.Module):
    """An inverted bottleneck: widen, one kernel for each channel, narrow; added to its input if it fits."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expand = Convolution(before, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(wide, wide, kernel, stride, depthwise=True)
        self.project = Convolution(wide, after, 1, act=False)
        self.adds = stride == 1 and before == after

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (N, before, H, W) to (N, after, H / stride, W / stride)."""
        found = self.project(self.depthwise(self.expand(hidden)))
        return hidden + found if self.adds else found


class EfficientNetLiteModel(PreTrainedModel):
    """Stem, stages, the last convolution and the classifier of ImageNet."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = Convolution(3, config.stem_size, 3, 2)
        self.layers = nn.ModuleList()
        before = config.stem_size
        for after, stride, kernel, depth, expansion in zip(
            config.hidden_sizes, config.strides, config.kernels, config.depths, config.expansions, strict=True
        ):
            blocks = [Block(before, after, kernel, stride, expansion)]
            blocks += [Block(after, after, kernel, 1, expansion) for _ in range(depth - 1)]
            self.layers.append(nn.Sequential(*blocks))
            before = after
        self.layers.append(Convolution(before, config.head_size, 1))
        self.classifier = nn.Linear(config.head_size, config.classes)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """Return the logits (N, 1000) of ImageNet's classes for pixels (N, 3, H, W)."""
        hidden = self.stem(pixel_values)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.classifier(hidden.mean(dim=(2, 3)))


# ---- the published weights ----

# a convolution's published name, that of its batch norm, and its name here
_ENDS = (("_conv_stem", "_bn0", "stem"), ("_conv_head", "_bn1", "layers.{head}"))
_PARTS = (
    ("_expand_conv", "_bn0", "expand"),
    ("_depthwise_conv", "_bn1", "depthwise"),
    ("_project_conv", "_bn2", "project"),
)


def from_published(
    weights: Mapping[str, torch.Tensor], config: EfficientNetLiteConfig
) -> dict[str, torch.Tensor]:
    """Give published weights the names of EfficientNetLiteModel, each batch norm folded into its convolution.

    Raises KeyError for one that is missing.
    """
    found = {f"classifier.{kind}": weights[f"_fc.{kind}"] for kind in ("weight", "bias")}
    for conv, norm, place in _ENDS:
        found |= _folded(weights, conv, norm, place.format(head=len(config.depths)))
    places = [(stage, block) for stage, depth in enumerate(config.depths) for block in range(depth)]
    for number, (stage, block) in enumerate(places):
        for conv, norm, part in _PARTS:
            if part == "expand" and config.expansions[stage] == 1:
                continue
            start = f"_blocks.{number}."
            found |= _folded(weights, start + conv, start + norm, f"layers.{stage}.{block}.{part}")
    return found


def _folded(weights: Mapping[str, torch.Tensor], conv: str, norm: str, place: str) -> dict[str, torch.Tensor]:
    """Return weight and bias of a convolution that does what it and its batch norm do while not training."""
    kernel = weights[f"{conv}.weight"]
    scale, shift, mean, variance = (
        weights[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (variance + EPSILON).sqrt()
    return {
        f"{place}.conv.weight": kernel * factor[:, None, None, None],
        f"{place}.conv.bias": shift - mean * factor,
    }
