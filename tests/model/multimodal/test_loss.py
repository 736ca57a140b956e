"""The loss over labelled positions: value and gradients as over all logits, fewer rows in the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional as F

from llava.model.multimodal.loss import losses_of_samples, supervised_loss


def _batch() -> dict[str, Any]:
    ids = tiny.token_ids(12)[None]
    labels = ids.clone()
    labels[:, :7] = -100
    with_image = torch.cat([ids[:, :3], torch.tensor([[tiny.IMAGE]]), ids[:, 3:]], dim=1)
    image_labels = torch.cat([labels[:, :3], torch.tensor([[-100]]), labels[:, 3:]], dim=1)
    return {"input_ids": with_image, "labels": image_labels, "images": tiny.pixels()}


def _loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), found


def test_training_loss_and_gradients_equal_those_over_all_logits(
    build: Callable[..., Any], family: str
) -> None:
    model = build(family)
    whole_loss, whole = _loss_and_gradients(model.eval(), _batch())
    loss, gradients = _loss_and_gradients(model.train(), _batch())
    assert torch.allclose(loss, whole_loss, rtol=1e-6)
    assert gradients.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.allclose(gradients[name], value, rtol=1e-4, atol=1e-7), name


def test_head_sees_only_labelled_positions_in_training(build: Callable[..., Any], family: str) -> None:
    model = build(family)
    rows: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    batch = _batch()
    assert model.train()(**batch).logits is None
    positions = batch["input_ids"].shape[1] - 1 + tiny.PATCHES
    assert model.eval()(**batch).logits.shape[1] == positions
    model.supervised_logits_only = False
    assert model.train()(**batch).logits.shape[1] == positions
    hook.remove()
    assert rows == [5, positions, positions]  # 5 labelled tokens


@pytest.mark.parametrize("shape", [(1, 2), (2, 9), (3, 17)])
def test_supervised_loss_is_the_mean_over_labelled_tokens(shape: tuple[int, int]) -> None:
    torch.manual_seed(sum(shape))
    hidden = torch.randn(*shape, 8)
    head = torch.nn.Linear(8, 11)
    labels = torch.randint(0, 11, shape)
    labels[:, 0] = -100  # never predicted
    expected = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(supervised_loss(hidden, labels, head), expected, rtol=1e-6)


def test_loss_without_labels_is_nan_as_the_mean_over_nothing() -> None:
    labels = torch.full((1, 4), -100)
    assert supervised_loss(torch.randn(1, 4, 8), labels, torch.nn.Linear(8, 11)).isnan()


def test_losses_of_samples_add_up_to_the_mean() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 9, 8), torch.nn.Linear(8, 11)
    labels = torch.randint(0, 11, (2, 9))
    labels[0, 4:6] = -100
    samples = torch.tensor([[0] * 5 + [1] * 4, [2] * 9])
    labels[0, 5] = -100  # the first of sample 1
    loss, sums, counts = losses_of_samples(hidden, labels, head, samples, 4)
    assert counts.tolist() == [3, 3, 8, 0] and sums[3] == 0
    assert torch.allclose(loss, supervised_loss(hidden, labels, head))
    assert torch.allclose(sums.sum() / counts.sum(), loss) and not sums.requires_grad
    alone = F.cross_entropy(head(hidden[0, :4]), labels[0, 1:5], reduction="sum")
    assert torch.allclose(sums[0], alone)


def test_evaluation_can_skip_logits_too(build: Callable[..., Any], family: str) -> None:
    """The output of evaluation mode without logits has the same loss, and tells it for each sample."""
    model, batch = build(family).eval(), _batch()
    whole, skipped = model(**batch), model(**batch, skip_logits=True)
    assert skipped.logits is None and torch.allclose(skipped.loss, whole.loss, rtol=1e-6)
    assert skipped.loss_counts.tolist() == [5]
    assert torch.allclose(skipped.loss_sums, skipped.loss[None] * 5)
