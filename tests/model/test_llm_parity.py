"""A LLaVA without images is its LLM: same logits, loss, gradients and tokens as transformers' own class."""

import pytest
import tiny
import torch


@pytest.fixture
def pair(build, family):
    """A LLaVA, and transformers' LLM with the same weights."""
    model = build(family)
    return model, tiny.bare_model(model)


def left_padded():
    ids = torch.stack([tiny.token_ids(9, 1), tiny.token_ids(9, 2)])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


def test_text_logits_and_loss_are_bit_equal(pair):
    model, bare = pair
    ids = tiny.prompt(11)
    labels = ids.clone()
    labels[:, :4] = -100
    with torch.no_grad():
        ours, theirs = model(input_ids=ids, labels=labels), bare(input_ids=ids, labels=labels)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    assert ours.logits.std() > 0.1


def test_logits_of_a_left_padded_batch_are_bit_equal(pair):
    model, bare = pair
    ids, mask = left_padded()
    with torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask).logits
        theirs = bare(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(ours[mask.bool()], theirs[mask.bool()])


def test_gradients_are_bit_equal(pair):
    model, bare = pair
    ids = tiny.prompt(8)
    for one in (model, bare):
        one(input_ids=ids, labels=ids).loss.backward()
    theirs = dict(bare.named_parameters())
    compared = 0
    for name, value in model.named_parameters():
        if name in theirs:
            assert torch.equal(value.grad, theirs[name].grad), name
            compared += 1
    assert compared == len(theirs)


def test_last_logits_only(pair):
    model, bare = pair
    ids = tiny.prompt(7)
    with torch.no_grad():
        ours = model(input_ids=ids, logits_to_keep=2).logits
        theirs = bare(input_ids=ids, logits_to_keep=2).logits
    assert ours.shape[1] == 2
    assert torch.equal(ours, theirs)


def test_hidden_states_and_tuple_output(pair):
    model, bare = pair
    ids = tiny.prompt(6)
    with torch.no_grad():
        ours = model(input_ids=ids, output_hidden_states=True)
        theirs = bare(input_ids=ids, output_hidden_states=True)
        as_tuple = model(input_ids=ids, labels=ids, return_dict=False)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.equal(a, b)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[1], ours.logits)


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_text_generation_is_the_llms_without_the_prompt(pair, strategy):
    model, bare = pair
    ids, mask = left_padded()
    arguments = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, **strategy}
    ours = model.generate(ids, **arguments)
    theirs = bare.generate(ids, **arguments)[:, ids.shape[1] :]
    assert torch.equal(ours, theirs)


def test_sampling_with_a_seed_is_the_llms(pair):
    model, bare = pair
    ids = tiny.prompt(5)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": True}
    torch.manual_seed(3)
    ours = model.generate(ids, temperature=0.7, top_p=0.9, **arguments)
    torch.manual_seed(3)
    theirs = bare.generate(ids, temperature=0.7, top_p=0.9, **arguments)
    assert torch.equal(ours, theirs[:, 5:])


def test_trainer_keeps_the_mean_of_each_micro_batch(pair):
    model, _ = pair
    assert model.accepts_loss_kwargs is False
