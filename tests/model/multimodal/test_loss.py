"""The loss over labelled positions: value and gradients as over all logits, fewer rows in the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.multimodal.loss import losses_of_samples, supervised_positions


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
def test_positions_with_a_next_label_give_the_loss_over_all(shape: tuple[int, int]) -> None:
    torch.manual_seed(sum(shape))
    logits = torch.randn(*shape, 11)
    labels = torch.randint(0, 11, shape)
    labels[:, 0] = -100  # never predicted
    labels[-1, shape[1] // 2 :] = -100
    labels[0, -1] = 3
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    positions, targets = supervised_positions(labels)
    assert len(positions) == int((labels[:, 1:] != -100).sum())
    loss, _, _ = losses_of_samples(logits.flatten(0, 1)[positions], targets, torch.zeros_like(targets), 1)
    assert torch.allclose(loss, expected, rtol=1e-6)


def test_loss_without_labels_is_nan_as_the_mean_over_nothing() -> None:
    positions, targets = supervised_positions(torch.full((1, 4), -100))
    assert not len(positions)
    loss, sums, counts = losses_of_samples(torch.randn(0, 11), targets, positions, 2)
    assert loss.isnan() and sums.tolist() == counts.tolist() == [0, 0]


def test_losses_of_samples_add_up_to_the_mean() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 9, 11, requires_grad=True), torch.randint(0, 11, (2, 9))
    labels[0, 4:6] = -100  # 5 is the first of sample 1
    samples = torch.tensor([[0] * 5 + [1] * 4, [2] * 9])
    positions, targets = supervised_positions(labels)
    own = logits.flatten(0, 1)[positions]
    loss, sums, counts = losses_of_samples(own, targets, samples.flatten()[positions], 4)
    assert counts.tolist() == [3, 3, 8, 0] and sums[3] == 0
    assert torch.allclose(loss, F.cross_entropy(own, targets))
    assert torch.allclose(sums.sum() / counts.sum(), loss) and not sums.requires_grad
    alone = F.cross_entropy(logits[0, :3], labels[0, 1:4], reduction="sum")
    assert torch.allclose(sums[0], alone)


# ---- heads that are more than a matrix ----

_SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
# what stands between the head's matrix and the loss
HEADS: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "cohere": {"logit_scale": 0.3},
    "phi": {},  # a bias
    "mixtral": {"output_router_logits": True, "router_aux_loss_coef": 0.5, "num_local_experts": 4},
}


def _mixed(model_type: str, tower: Path) -> Any:
    """LLaVA on an LLM that this library has no file for: its classes, made here."""
    config_class = CONFIG_MAPPING[model_type]
    head_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    body_class = MODEL_MAPPING[config_class]
    body = type("Body", (LlavaMetaModel, body_class), {})

    def init(self: Any, config: Any) -> None:
        super(head, self).__init__(config)
        self.model = body(config)

    head: Any = type("Head", (LlavaMetaForCausalLM, head_class), {"__init__": init})
    fields = {
        name: value
        for name, value in tiny.llava_config("llama", tower).to_dict().items()
        if name.startswith(("mm_", "image_", "use_mm"))
    }
    torch.manual_seed(0)
    model = head(config_class(**{**_SIZES, **HEADS[model_type], **fields}))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "vision_tower" not in name:
                value.add_(torch.randn_like(value) * 0.3)
    model.get_vision_tower().load_model()
    return model


@pytest.mark.parametrize("model_type", HEADS)
def test_loss_goes_through_the_llms_own_head(model_type: str, tower: Path) -> None:
    """Soft caps, scalings, biases and the loss of a router count as in the LLM's own forward."""
    model = _mixed(model_type, tower)
    batch = _batch()
    expected, gradients = _loss_and_gradients(model.eval(), batch)
    found, own = _loss_and_gradients(model.train(), batch)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert own.keys() == gradients.keys()
    for name, value in gradients.items():
        assert torch.allclose(own[name], value, rtol=1e-3, atol=1e-6), name
    with torch.no_grad():  # the bare matrix gives something else
        body = model.get_model()
        *_, embeds, labels = model.prepare_inputs_labels_for_multimodal(
            batch["input_ids"], None, None, None, batch["labels"], batch["images"]
        )
        states = body(inputs_embeds=embeds).last_hidden_state
        plain = torch.nn.functional.linear(states, model.get_output_embeddings().weight)
        bare = F.cross_entropy(plain[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert not torch.allclose(bare, expected, rtol=1e-3)
    assert body.positions_for_head is None


def test_evaluation_can_skip_logits_too(build: Callable[..., Any], family: str) -> None:
    """The output of evaluation mode without logits has the same loss, and tells it for each sample."""
    model, batch = build(family).eval(), _batch()
    whole, skipped = model(**batch), model(**batch, skip_logits=True)
    assert skipped.logits is None and torch.allclose(skipped.loss, whole.loss, rtol=1e-6)
    assert skipped.loss_counts.tolist() == [5]
    assert torch.allclose(skipped.loss_sums, skipped.loss[None] * 5)
