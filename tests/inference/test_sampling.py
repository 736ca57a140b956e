"""SamplingParams refuses what makes no sense; NextToken chooses like transformers."""

import math
from types import SimpleNamespace

import pytest
import torch

from llava.inference.sampling import NextToken, SamplingParams
from llava.utils import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e-30),
        ("temperature", 1e9),
        ("temperature", "0.2"),
        ("temperature", None),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", -1),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2.5),
        ("num_beams", 0),
        ("num_beams", True),
        ("max_new_tokens", 0),
        ("max_new_tokens", -5),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", 2**70),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ("",)),
        ("stop", (3,)),
    ],
)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=rf"^{name} is .*; expected"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0.0, "num_beams": 4},
        {"temperature": 1, "top_p": 1},
        {"top_p": 1e-3, "top_k": 0, "max_new_tokens": 1, "seed": 0},
        {"stop": "###"},
    ],
)
def test_good_values_pass(settings):
    SamplingParams(**settings)


def test_one_stop_string_may_stand_alone():
    assert SamplingParams(stop="###").stop == ("###",)


def test_greedy_generate_arguments_switch_sampling_settings_off():
    kwargs = SamplingParams(temperature=0, top_p=0.5).generate_kwargs()
    assert kwargs["do_sample"] is False
    assert kwargs["temperature"] is None and kwargs["top_p"] is None and kwargs["top_k"] is None


def test_unset_values_are_left_to_the_checkpoint():
    kwargs = SamplingParams(temperature=0.7).generate_kwargs()
    assert kwargs["temperature"] == 0.7
    assert "top_p" not in kwargs and "top_k" not in kwargs


def test_greedy_takes_the_largest():
    choose = NextToken(SamplingParams(temperature=0), SimpleNamespace(), CPU)
    assert choose(torch.tensor([[0.1, 3.0, 2.0]]), []) == 1


def test_repetition_penalty_of_the_checkpoint_counts():
    choose = NextToken(SamplingParams(temperature=0), SimpleNamespace(repetition_penalty=2.0), CPU)
    assert choose(torch.tensor([[0.1, 3.0, 2.0]]), [1]) == 2


def test_top_k_one_is_greedy_and_top_p_cuts():
    logits = torch.tensor([[0.0, 5.0, 4.9, -1.0]])
    only = NextToken(SamplingParams(temperature=5, top_k=1), SimpleNamespace(), CPU)
    assert {only(logits, []) for _ in range(20)} == {1}
    narrow = NextToken(SamplingParams(temperature=1, top_p=0.9), SimpleNamespace(), CPU)
    assert {narrow(logits, []) for _ in range(50)} == {1, 2}


def test_seed_repeats_and_leaves_the_global_state_alone():
    logits = torch.zeros(1, 50)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        choose = NextToken(SamplingParams(temperature=1, seed=5), SimpleNamespace(), CPU)
        runs.append([choose(logits, []) for _ in range(10)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_nan_is_reported_with_its_dtype():
    choose = NextToken(SamplingParams(), SimpleNamespace(), CPU)
    with pytest.raises(UserError, match=r"NaN\) in float16.*float32"):
        choose(torch.tensor([[1.0, math.nan]], dtype=torch.float16), [])
