"""The engine: the answers of ChatSession whatever runs beside them, within bounds, whatever goes wrong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from watching import Gate, forwards, tower_calls

from llava.conversation import conv_templates
from llava.inference import Assistant, ChatSession, SamplingParams
from llava.inference.engine import (
    Dialog,
    DoesNotFit,
    Engine,
    EngineDead,
    OutOfMemory,
    Piece,
    PromptTooLong,
    QueueFull,
    RawPrompt,
    Waiting,
)
from llava.inference.prompt import new_dialog
from llava.utils import UserError

GREEDY = SamplingParams(temperature=0, max_new_tokens=10)
IMAGES = [Image.effect_noise(size, 60).convert("RGB") for size in ((90, 60), (40, 70), (200, 30))]
QUESTIONS = [
    ("Hello", []),
    ("What is this?", IMAGES[:1]),
    ("And its colour?", IMAGES[:1]),
    ("Compare <image> with <image> in detail, please.", IMAGES[1:]),
    ("Tell me about the sea. " * 7, []),
    ("Why?", []),
]


def dialog_of(template, number):
    text, images = QUESTIONS[number]
    return new_dialog(conv_templates[template], text, images, object(), has_tower=True)


def expected(loaded, template, number, params=GREEDY):
    session = ChatSession(loaded, template=template)
    text, images = QUESTIONS[number]
    return session.ask(text, images, params), session.finish_reason


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


BUDGETS = [0, 2**18, 2**28]  # nothing, little and everything is kept
REQUESTS = st.lists(
    st.tuples(
        st.integers(0, len(QUESTIONS) - 1),
        st.integers(1, 14),  # tokens
        st.sampled_from([None, None, 3, 8]),  # seed: sampled
        st.sampled_from([0, 0, 0.004, 0.02]),  # seconds before it comes
        st.sampled_from([None, None, None, 0, 2]),  # cancelled after so many events
    ),
    min_size=2,
    max_size=9,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "mpt"])
def test_answers_are_those_of_a_session_whatever_runs_beside_them(name, load_family):
    loaded, template = load_family(name)

    @cache
    def alone(number, tokens, seed):
        return expected(loaded, template, number, params_of(tokens, seed))

    def params_of(tokens, seed):
        return SamplingParams(temperature=0.9 if seed else 0, seed=seed, max_new_tokens=tokens)

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(
        REQUESTS,
        st.sampled_from([1, 3, 8]),
        st.sampled_from([16, 64, 4096]),
        st.sampled_from([0, 2**18, 2**28]),
    )
    def check(requests, max_running, chunk, cache_bytes):
        engine = Engine(
            loaded,
            max_running=max_running,
            prefill_chunk=chunk,
            cache_bytes=cache_bytes,
            memory_bytes=2**30,
        )
        tickets = []
        for number, tokens, seed, delay, cancel in requests:
            time.sleep(delay)
            ticket = engine.submit(dialog_of(template, number), params_of(tokens, seed))
            if cancel is not None:
                until(lambda ticket=ticket, cancel=cancel: ticket.done or len(ticket._pieces) >= cancel)
                ticket.cancel()
            tickets.append(ticket)
        for ticket, (number, tokens, seed, _, _) in zip(tickets, requests, strict=True):
            answer = ticket.result(timeout=60)
            text, reason = alone(number, tokens, seed)
            if answer.finish_reason == "cancelled":
                assert text.startswith(answer.text)
            else:
                assert (answer.text, answer.finish_reason) == (text, reason)
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0) and stats.cache_bytes <= cache_bytes
        engine.close()

    check()


def test_a_second_turn_costs_its_own_tokens(engine, llama, sample_image):
    session = ChatSession(llama, template="llava_v1")
    first = engine.submit(dialog_of("llava_v1", 1), GREEDY)
    answer = first.result(20).text
    assert session.ask(*QUESTIONS[1], GREEDY) == answer
    assert first.usage.cached_tokens == 0 and first.usage.completion_tokens == 10
    conversation = dialog_of("llava_v1", 1).conversation
    conversation.messages[-1][1] = answer
    conversation.append_message(conversation.roles[0], "And?")
    conversation.append_message(conversation.roles[1], None)
    with tower_calls(llama.model) as calls, forwards(llama.model) as lengths:
        second = engine.submit(Dialog(conversation, IMAGES[:1]), GREEDY)
        found = second.result(20).text
    assert found == session.ask("And?", (), GREEDY)
    assert not calls and lengths[0] < 40 and lengths[1:] == [1] * 9
    assert second.usage.cached_tokens == second.usage.prompt_tokens - lengths[0] > 50
    stats = engine.stats()
    assert stats.prefix_hits_total == 1 and stats.prefix_misses_total == 1
    assert stats.requests_total == {"length": 2} and stats.generated_tokens_total == 20


def test_nothing_is_kept_over_a_change_of_the_model(engine_of, llama):
    import copy

    loaded = llama._replace(model=copy.deepcopy(llama.model))
    engine = engine_of(loaded)
    engine.submit(dialog_of("llava_v1", 1), GREEDY).result(20)
    with torch.no_grad():
        for one in loaded.model.parameters():
            one.mul_(1.3)
    found = engine.submit(dialog_of("llava_v1", 1), GREEDY)
    assert found.result(20).text == expected(loaded, "llava_v1", 1)[0]
    assert found.usage.cached_tokens == 0


def test_long_prompts_come_in_pieces_between_the_tokens_of_others(engine_of, llama):
    engine = engine_of(llama, prefill_chunk=16)
    with forwards(llama.model) as lengths, Gate(llama.model) as gate:
        first = engine.submit(dialog_of("llava_v1", 0), SamplingParams(temperature=0, max_new_tokens=60))
        gate.run_until(lambda: 1 in lengths)
        begin = len(lengths)
        second = engine.submit(dialog_of("llava_v1", 4), SamplingParams(temperature=0, max_new_tokens=1))
        gate.open()
        second.result(20)
        pieces = lengths[begin:]
        first.result(20)
    assert max(lengths) <= 16
    places = [place for place, length in enumerate(pieces) if length > 1]
    assert len(places) > 5
    assert all(1 in pieces[one:other] for one, other in zip(places, places[1:], strict=False))


def test_events_tell_tokens_with_logprobs(engine, llama):
    ticket = engine.submit(dialog_of("llava_v1", 0), GREEDY, top_logprobs=3)
    pieces = [one for one in ticket if isinstance(one, Piece)]
    tokens = [token for one in pieces for token in one.tokens]
    assert "".join(one.text for one in pieces) == expected(llama, "llava_v1", 0)[0]
    assert len(tokens) == 10 and ticket.time_to_first_token > 0
    for token in tokens:
        assert len(token.top) == 3 and token.top[0] == (token.id, token.logprob)  # greedy: the likeliest
    ids = [*engine.loaded.read(dialog_of("llava_v1", 0)).ids]
    with torch.inference_mode():
        logits = llama.model(input_ids=torch.tensor([ids])).logits[0, -1]
    assert tokens[0].logprob == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)


def test_a_bias_forbids_and_forces_tokens(engine):
    plain = engine.submit(dialog_of("llava_v1", 0), GREEDY).result(20).ids
    without = engine.submit(dialog_of("llava_v1", 0), GREEDY, logit_bias={plain[0]: -100}).result(20).ids
    assert plain[0] not in without
    forced = engine.submit(dialog_of("llava_v1", 0), GREEDY, logit_bias={333: 100.0}).result(20).ids
    assert set(forced) == {333}


def test_choices_share_one_prefill(engine, llama):
    params = SamplingParams(temperature=1.2, seed=5, max_new_tokens=8)
    with forwards(llama.model) as lengths:
        tickets = engine.submit_choices(dialog_of("llava_v1", 1), params, n=4)
        found = [one.result(20).text for one in tickets]
    assert sum(one > 1 for one in lengths) == 1
    for index, text in enumerate(found):
        own = SamplingParams(temperature=1.2, seed=5 + index, max_new_tokens=8)
        assert text == expected(llama, "llava_v1", 1, own)[0]
    assert len(set(found)) > 1


def test_prompts_without_a_template(engine, llama):
    by_text = engine.submit(RawPrompt("One two <image> three", IMAGES[:1]), GREEDY).result(20)
    ids = [*llama.tokenizer("One two").input_ids]
    by_ids = engine.submit(RawPrompt(ids, stop=("zzz",)), GREEDY).result(20)
    assert by_ids == engine.submit(RawPrompt("One two"), GREEDY).result(20)
    assert len(by_text.ids) == len(by_ids.ids) == 10


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        (RawPrompt([1, 999_999]), {}, "token id 999999; expected whole numbers below"),
        (RawPrompt([]), {}, "the prompt is empty"),
        (RawPrompt("<image> What?"), {}, "1 image token.* 0 image"),
        (RawPrompt("word " * 3000), {}, "takes at least"),
        (RawPrompt("x"), {"top_logprobs": 21}, "top_logprobs is 21"),
        (RawPrompt("x"), {"logit_bias": {-1: 1.0}}, "logit_bias names the token -1"),
        (RawPrompt("x"), {"logit_bias": {5: float("nan")}}, "logit_bias of token 5 is nan"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(engine, prompt, options, told):
    with pytest.raises(UserError, match=told):
        engine.submit(prompt, GREEDY, **options)
    with pytest.raises(UserError, match="num_beams is 2"):
        engine.submit(RawPrompt("x"), SamplingParams(num_beams=2))
    if "word" in str(prompt.prompt):
        with pytest.raises(PromptTooLong):
            engine.submit(prompt, GREEDY)


def test_the_queue_is_bounded_and_its_places_are_known(engine_of, llama):
    engine = engine_of(llama, max_running=1, max_waiting=2)
    long = SamplingParams(temperature=0, max_new_tokens=400)
    with Gate(llama.model) as gate:
        first = engine.submit(dialog_of("llava_v1", 0), long)
        gate.run_until(lambda: True)
        second, third = (engine.submit(dialog_of("llava_v1", 5), GREEDY) for _ in range(2))
        assert [one.place for one in (first, second, third)] == [0, 1, 2]
        events = iter(third)
        assert next(events) == Waiting(2)
        with pytest.raises(QueueFull) as caught:
            engine.submit(dialog_of("llava_v1", 5), GREEDY)
        assert caught.value.retry_after > 0
        second.cancel()
        assert second.done and second.finish_reason == "cancelled"  # at once, nothing of it was run
        assert third.place == 1
        first.cancel()
    assert first.result(20).finish_reason == "cancelled"
    assert engine.submit(dialog_of("llava_v1", 5), GREEDY).result(20).finish_reason == "length"


def test_what_does_not_fit_waits_and_what_never_fits_is_refused(engine_of, llama):
    probe = engine_of(llama)
    rows = [probe._rows(dialog_of("llava_v1", number), GREEDY, 1, None, None)[0] for number in (0, 4)]
    budget = rows[1].n_final * probe._position_bytes
    engine = engine_of(llama, memory_bytes=budget)
    seen = []
    hook = llama.model.register_forward_pre_hook(lambda *_: seen.append(engine.stats()))
    try:
        tickets = [engine.submit(dialog_of("llava_v1", number), GREEDY) for number in (4, 0, 5, 4)]
        found = [one.result(20).text for one in tickets]
    finally:
        hook.remove()
    assert found == [expected(llama, "llava_v1", number)[0] for number in (4, 0, 5, 4)]
    assert max(one.running for one in seen) <= 2
    assert max(one.kv_bytes for one in seen) <= 3 * budget  # with free columns
    with pytest.raises(DoesNotFit, match="ask for fewer tokens"):
        engine.submit(dialog_of("llava_v1", 4), SamplingParams(temperature=0, max_new_tokens=500))


class Fault:
    """Lets the model's forward pass fail on some calls."""

    def __init__(self, model, error, when):
        self.error, self.when, self.count = error, when, 0
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        shape = (kwargs["input_ids"] if given is None else given).shape
        if self.when(shape[0], shape[1]):
            self.count += 1
            raise self.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def test_too_little_memory_for_a_prompt_costs_that_request_alone(engine, llama):
    running = engine.submit(dialog_of("llava_v1", 0), SamplingParams(temperature=0, max_new_tokens=300))
    until(lambda: running.usage.completion_tokens > 2)
    with Fault(llama.model, torch.OutOfMemoryError("no memory"), lambda rows, length: length > 100) as fault:
        with pytest.raises(OutOfMemory, match="too little memory for this request: no memory"):
            engine.submit(dialog_of("llava_v1", 4), GREEDY).result(20)
        assert fault.count
        assert (
            engine.submit(dialog_of("llava_v1", 0), GREEDY).result(20).text
            == expected(llama, "llava_v1", 0)[0]
        )
    assert running.result(20).finish_reason == "length" and engine.alive


def test_too_little_memory_for_a_token_costs_the_longest_answer(engine, llama):
    long = SamplingParams(temperature=0, max_new_tokens=200)
    with Fault(llama.model, torch.OutOfMemoryError("none"), lambda rows, length: rows > 2 and length == 1):
        with engine._changed:  # all come at once
            tickets = [engine.submit(dialog_of("llava_v1", number), long) for number in (0, 4, 5)]
        with pytest.raises(OutOfMemory):
            tickets[1].result(20)
    for ticket, number in ((tickets[0], 0), (tickets[2], 5)):
        assert ticket.result(20).text == expected(llama, "llava_v1", number, long)[0]


def test_a_group_that_fails_is_tried_one_by_one(engine_of, llama):
    engine = engine_of(llama, max_running=4)
    with Fault(llama.model, torch.OutOfMemoryError("none"), lambda rows, length: rows > 1 and length > 1):
        with engine._changed:  # all come at once
            tickets = [engine.submit(dialog_of("llava_v1", number), GREEDY) for number in (0, 5, 0)]
        assert [one.result(20).text for one in tickets] == [
            expected(llama, "llava_v1", number)[0] for number in (0, 5, 0)
        ]


def test_a_fault_of_the_model_ends_the_engine_and_every_ticket(engine, llama):
    long = SamplingParams(max_new_tokens=400)

    def late(rows, length):
        return length == 1 and tickets[0].usage.completion_tokens > 1

    with Fault(llama.model, RuntimeError("device-side assert"), late):
        with engine._changed:  # all come at once
            tickets = [engine.submit(dialog_of("llava_v1", 0), long) for _ in range(3)]
        for one in tickets:
            with pytest.raises(EngineDead, match="device-side assert"):
                one.result(20)
    until(lambda: not engine.alive)
    with pytest.raises(EngineDead):
        engine.submit(dialog_of("llava_v1", 0), GREEDY)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (ValueError("a fault of this request"), True),
    ],
    ids=["lost", "lost, as an old error", "memory", "request"],
)
def test_a_lost_device_in_a_prompt_ends_the_engine(engine, llama, error, kept):
    with Gate(llama.model) as gate, Fault(llama.model, error, lambda rows, length: length > 100) as fault:
        running = engine.submit(dialog_of("llava_v1", 0), SamplingParams(temperature=0, max_new_tokens=300))
        gate.run_until(lambda: running.usage.completion_tokens > 2)
        hit = engine.submit(dialog_of("llava_v1", 4), GREEDY)
        behind = engine.submit(dialog_of("llava_v1", 5), GREEDY)
        gate.open()
        with pytest.raises(type(error) if kept else EngineDead):
            hit.result(20)
        assert fault.count
        for one in (behind, running):
            with nullcontext() if kept else pytest.raises(EngineDead, match="CUDA error"):
                assert one.result(20).finish_reason == "length"
    until(lambda: engine.alive == kept)


def test_logits_that_are_no_numbers_cost_their_row(engine, llama):
    def spoil(module, args, output):
        if output.logits.shape[0] == 2:
            output.logits[0] = float("nan")
        return output

    long = SamplingParams(temperature=0, max_new_tokens=30)
    handle = llama.model.register_forward_hook(spoil)
    try:
        with engine._changed:
            tickets = [engine.submit(dialog_of("llava_v1", number), long) for number in (0, 5)]
        with pytest.raises(UserError, match="not a number"):
            tickets[0].result(20)
        assert tickets[1].result(20).text == expected(llama, "llava_v1", 5, long)[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("drain", [0.0, 30.0])
def test_closing_drains_or_ends_what_is_left(engine_of, llama, drain):
    engine = engine_of(llama, max_running=1)
    long = SamplingParams(temperature=0, max_new_tokens=60)
    with Gate(llama.model) as gate, ThreadPoolExecutor() as pool:
        tickets = [engine.submit(dialog_of("llava_v1", 0), long) for _ in "ab"]
        gate.run_until(lambda: tickets[0].usage.completion_tokens)
        closing = pool.submit(engine.close, drain)
        until(lambda: engine._closing if drain else engine._died)
        gate.open()
        closing.result(60)
    assert not engine.alive and not engine._thread.is_alive()
    for one in tickets:
        if drain:
            assert one.result(1).finish_reason == "length"
        else:
            with pytest.raises(EngineDead, match="closed"):
                one.result(1)
    with pytest.raises(EngineDead):
        engine.submit(dialog_of("llava_v1", 0), GREEDY)


def test_many_threads_ask_at_once(engine, llama):
    found = {}

    def ask(number):
        found[number] = engine.submit(dialog_of("llava_v1", number % 6), GREEDY).result(60).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(18)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    alone = [expected(llama, "llava_v1", number)[0] for number in range(6)]
    assert [found[number] for number in range(18)] == [alone[number % 6] for number in range(18)]


def test_the_assistants_answers_are_the_engines(engine, llama):
    assistant = Assistant(llama, conv_templates["llava_v1"])
    found = assistant.chat(*QUESTIONS[3], temperature=0, max_new_tokens=10)
    assert found == engine.submit(dialog_of("llava_v1", 3), GREEDY).result(20).text
