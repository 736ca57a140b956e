"""The engine: sliding windows against passes without a cache, and its sleep, by counts."""

import time

import pytest
import torch
from test_engine import GREEDY, dialog_of, expected, until

from llava.inference import SamplingParams


def without_cache(loaded, template, number, n):
    """Choose n tokens greedily, each with a forward pass over the whole text."""
    ids = list(loaded.read(dialog_of(template, number)).ids)
    found = []
    with torch.inference_mode():
        for _ in range(n):
            out = loaded.model(input_ids=torch.tensor([[*ids, *found]]), use_cache=False)
            found.append(int(out.logits[0, -1].argmax()))
    return found


@pytest.mark.parametrize("window", [24, 48])
def test_a_sliding_window_slides_over_joined_rows(engine_of, load_family, monkeypatch, window):
    loaded, template = load_family("mistral")
    whole = {number: without_cache(loaded, template, number, 40) for number in (0, 4, 5)}
    monkeypatch.setattr(loaded.model.config, "sliding_window", window)
    engine = engine_of(loaded, prefill_chunk=16)
    long = SamplingParams(temperature=0, max_new_tokens=40)
    tickets = {number: engine.submit(dialog_of(template, number), long) for number in (0, 4, 1, 5)}
    slid = {number: without_cache(loaded, template, number, 40) for number in whole}
    assert slid[4] != whole[4]  # the window is felt
    for number, ids in slid.items():
        found = tickets[number].result(60).ids
        assert len(found) > 10 and list(found) == ids[: len(found)]
    assert tickets[1].result(60).text == expected(loaded, template, 1, long)[0]


def test_an_idle_engine_sleeps(engine, monkeypatch):
    engine.submit(dialog_of("llava_v1", 0), GREEDY).result(20)
    until(lambda: engine.stats().running == 0)
    time.sleep(0.05)  # it has come to its wait
    waits, steps = [], engine.stats().steps_total
    wait = engine._changed.wait
    monkeypatch.setattr(engine._changed, "wait", lambda *given: waits.append(given) or wait(*given))
    time.sleep(0.3)
    assert not waits and engine.stats().steps_total == steps  # it was not woken, by a clock neither
    engine.submit(dialog_of("llava_v1", 0), GREEDY).result(20)
    until(lambda: waits)
    assert waits == [()] and engine.stats().steps_total > steps
