"""The table of projectors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava.model.multimodal_projector import builder
from llava.model.multimodal_projector.builder import IdentityMap, SimpleResBlock, build_vision_projector
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
    "name", ["conv", "mlp0x_gelu", "mlpx_gelu", "mlp2x_relu", "mlp2x_gelu_extra", " linear", ""]
)
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(UserError, match="linear, mlpNx_gelu .*, identity") as caught:
        make(name)
    assert repr(name) in str(caught.value)


def test_a_new_projector_is_one_line(monkeypatch):
    def factory(vision_width, llm_width, match):
        return nn.Linear(vision_width, llm_width, bias=False)

    monkeypatch.setitem(builder.PROJECTORS, r"slim", ("slim", factory))
    assert shapes(make("slim")) == {"weight": (10, 6)}
    with pytest.raises(UserError, match="slim"):
        make("other")


def test_the_projector_of_the_docs(monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    code = page.partition("\n## Add your own projector\n")[2].partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    monkeypatch.setattr(builder, "PROJECTORS", dict(builder.PROJECTORS))
    exec(code, {})
    module, x = make("normed"), torch.randn(3, 6)
    torch.testing.assert_close(module(x), module[1](nn.functional.layer_norm(x, (6,))))
    with pytest.raises(UserError, match="normed .layer norm"):
        make("other")


def test_residual_block_keeps_its_weight_names():
    block = SimpleResBlock(4)
    assert set(shapes(block)) == {f"{part}.{kind}" for part in ("pre_norm", "proj.0", "proj.2")
                                  for kind in ("weight", "bias")}  # fmt: skip
    with torch.no_grad():
        block.proj[2].weight.zero_()
        block.proj[2].bias.zero_()
    x = torch.randn(2, 4)
    torch.testing.assert_close(block(x), block.pre_norm(x))
