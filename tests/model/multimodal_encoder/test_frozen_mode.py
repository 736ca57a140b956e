"""A frozen tower stays as it was trained, also while the model around it trains: batch norms and dropout."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

from llava.model.multimodal_encoder.builder import build_vision_tower


class Normed(nn.Module):
    """The embeddings of a tower with a batch norm and dropout behind them."""

    def __init__(self, embeddings: nn.Module, width: int) -> None:
        super().__init__()
        self.embeddings, self.norm, self.dropout = embeddings, nn.BatchNorm1d(width), nn.Dropout(0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.norm(self.embeddings(pixels).transpose(1, 2)).transpose(1, 2))


@pytest.fixture
def normed(tower):
    """A tower whose features depend on whether it trains, within a model."""
    args = SimpleNamespace(mm_vision_tower=str(tower), mm_vision_select_layer=-2)
    built = build_vision_tower(args)
    model = built.vision_tower.vision_model
    model.embeddings = Normed(model.embeddings, built.hidden_size)
    model.embeddings.requires_grad_(False)
    return nn.ModuleDict({"tower": built, "projector": nn.Linear(4, 4)})


def test_a_frozen_tower_is_not_put_into_training_mode(normed) -> None:
    images = tiny.pixels(2, 3, 28, 28)
    before = normed.eval()["tower"](images)
    normed.train()
    norm = normed["tower"].vision_tower.vision_model.embeddings.norm
    assert normed.training and normed["projector"].training and not norm.training
    assert torch.equal(normed["tower"](images), before)
    assert torch.equal(
        norm.running_mean, torch.zeros_like(norm.running_mean)
    )  # no statistics of these images


def test_a_tower_that_trains_is(normed) -> None:
    normed["tower"].unfreeze()
    normed.train()
    assert normed["tower"].vision_tower.vision_model.embeddings.norm.training
    normed.eval()
    assert not normed["tower"].vision_tower.vision_model.embeddings.norm.training


def test_a_tower_without_weights_yet_changes_its_mode(tower) -> None:
    args = SimpleNamespace(mm_vision_tower=str(tower), mm_vision_select_layer=-2)
    assert build_vision_tower(args, delay_load=True).train().training
