"""The table of projectors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

from llava.inference.model_inputs import image_length
from llava.model.multimodal_projector import registry
from llava.model.multimodal_projector.builder import IdentityMap, SimpleResBlock, build_vision_projector
from llava.model.multimodal_projector.pooling import AveragePool, PixelShuffle
from llava.model.multimodal_projector.resampler import Attention
from llava.utils import UserError


def make(kind=None, **kwargs):
    config = SimpleNamespace(mm_hidden_size=6, hidden_size=10)
    if kind is not None:
        config.mm_projector_type = kind
    return build_vision_projector(config, **kwargs)


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_linear_is_the_default():
    assert shapes(make()) == shapes(make("linear")) == {"weight": (10, 6), "bias": (10,)}


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 12])
def test_mlp_of_any_depth(depth):
    module = make(f"mlp{depth}x_gelu")
    expected = {}
    for layer in range(depth):
        expected[f"{2 * layer}.weight"] = (10, 6 if layer == 0 else 10)
        expected[f"{2 * layer}.bias"] = (10,)
    assert shapes(module) == expected
    assert module(torch.randn(2, 5, 6)).shape == (2, 5, 10)


def test_mlp_is_linear_gelu_linear():
    module, x = make("mlp2x_gelu"), torch.randn(3, 6)
    expected = nn.functional.linear(
        nn.functional.gelu(nn.functional.linear(x, module[0].weight, module[0].bias)),
        module[2].weight,
        module[2].bias,
    )
    torch.testing.assert_close(module(x), expected)


def test_identity():
    module, x = make("identity", delay_load=True), torch.randn(2, 6)
    assert isinstance(module, IdentityMap)
    assert module(x, "ignored") is x
    assert module.config == {"mm_projector_type": "identity"}
    assert shapes(module) == {}


@pytest.mark.parametrize(
    "name",
    ["conv", "mlp0x_gelu", "mlpx_gelu", "mlp2x_relu", "mlp2x_gelu_extra", " linear", ""]
    + ["mlp2x_res0x_gelu", "avg_pool1x_mlp2x_gelu", "pixel_shuffle2x_gelu", "perceiver2x_0tokens", "qformer"],
)
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(UserError, match="linear, mlpNx_gelu .*, identity") as caught:
        make(name)
    assert repr(name) in str(caught.value)


def test_a_new_projector_is_one_line(monkeypatch):
    monkeypatch.setattr(registry, "PROJECTORS", dict(registry.PROJECTORS))
    registry.register_projector(
        r"slim",
        "slim",
        lambda config, match: nn.Linear(config.mm_hidden_size, config.hidden_size, bias=False),
    )
    assert shapes(make("slim")) == {"weight": (10, 6)}
    with pytest.raises(UserError, match="slim"):
        make("other")


@pytest.fixture
def documented(monkeypatch):
    """The projector that docs/projectors.md adds, registered for one test; returns its code."""
    page = (Path(__file__).parents[3] / "docs" / "projectors.md").read_text()
    code = page.partition("\n## Add your own\n")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.setattr(registry, "PROJECTORS", dict(registry.PROJECTORS))
    exec(code, {})
    return code


def test_the_projector_of_the_docs(documented, build):
    lines = [line for line in documented.splitlines() if line and "import" not in line]
    assert len(lines) <= 10
    model = build(mm_projector_type="middle2x2")
    features = model.get_vision_tower()(tiny.pixels())
    middle = features[:, [5, 6, 9, 10]]  # of 4 x 4
    got = model.encode_images(tiny.pixels())
    torch.testing.assert_close(got, model.get_model().mm_projector[1](middle))
    assert got.shape[1] == image_length(model, (28, 28)) == 4
    with pytest.raises(UserError, match="middle2x2 .the four"):
        make("other")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "mlp2x_res2x_gelu",  # LLaVA-NeXT's names
            {"0.weight": (10, 6), "0.bias": (10,), "2.weight": (10, 10), "2.bias": (10,)}
            | {
                f"{block}.{name}.{part}": (10, 10)[: 2 if part == "weight" and name != "pre_norm" else 1]
                for block in (3, 4)
                for name in ("pre_norm", "proj.0", "proj.2")
                for part in ("weight", "bias")
            },
        ),
        ("avg_pool2x_mlp1x_gelu", {"1.weight": (10, 6), "1.bias": (10,)}),
        (
            "pixel_shuffle3x_mlp1x_gelu",
            {"1.weight": (54,), "1.bias": (54,), "2.weight": (10, 54), "2.bias": (10,)},
        ),
    ],
)
def test_weight_names(kind, expected):
    assert shapes(make(kind)) == expected


def test_residual_blocks_follow_the_mlp():
    module, x = make("mlp2x_res1x_gelu"), torch.randn(3, 6)
    torch.testing.assert_close(module(x), module[3](module[:3](x)))


@pytest.mark.parametrize(("side", "edge"), [(4, 2), (5, 2), (6, 3), (7, 4)])
def test_means_of_squares_of_patches(side, edge):
    x = torch.randn(2, side * side, 6)
    plane = x.view(2, side, side, 6)
    starts = range(0, side, edge)
    means = [
        plane[:, row : row + edge, column : column + edge].mean((1, 2)) for row in starts for column in starts
    ]
    torch.testing.assert_close(AveragePool(edge)(x), torch.stack(means, 1))


def test_squares_of_patches_side_by_side():
    x = torch.arange(2 * 16 * 3.0).view(2, 16, 3)
    got = PixelShuffle(2)(x)
    assert got.shape == (2, 4, 12)
    for square, places in enumerate([(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)]):
        assert torch.equal(got[:, square], x[:, places].flatten(1))


@pytest.mark.parametrize("kind", ["perceiver2x_5tokens", "qformer2x_5tokens"])
def test_a_budget_reads_every_feature_of_its_image_alone(kind):
    torch.manual_seed(0)
    module, x = make(kind), torch.randn(2, 16, 6, requires_grad=True)
    out = module(x)
    assert out.shape == (2, 5, 10)
    out[0].square().sum().backward()
    assert bool((x.grad[0] != 0).all())
    assert bool((x.grad[1] == 0).all())
    assert {name for name, one in module.named_parameters() if one.grad is None} == set()
    assert not torch.allclose(out[0, 0], out[0, 1])


@pytest.mark.parametrize(("width", "heads"), [(6, 1), (64, 1), (96, 1), (128, 2), (200, 2), (1152, 18)])
def test_heads_divide_the_width(width, heads):
    assert Attention(width).heads == heads


def test_attention_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    module, queries, context = Attention(128), torch.randn(1, 3, 128), torch.randn(1, 4, 128)
    keys, values = module.kv(context).chunk(2, -1)
    heads = []
    for part in (slice(0, 64), slice(64, 128)):
        weights = (module.q(queries)[..., part] @ keys[..., part].transpose(1, 2) / 8).softmax(-1)
        heads.append(weights @ values[..., part])
    torch.testing.assert_close(module(queries, context), module.out(torch.cat(heads, -1)))


def test_residual_block_keeps_its_weight_names():
    block = SimpleResBlock(4)
    assert set(shapes(block)) == {f"{part}.{kind}" for part in ("pre_norm", "proj.0", "proj.2")
                                  for kind in ("weight", "bias")}  # fmt: skip
    with torch.no_grad():
        block.proj[2].weight.zero_()
        block.proj[2].bias.zero_()
    x = torch.randn(2, 4)
    torch.testing.assert_close(block(x), block.pre_norm(x))
