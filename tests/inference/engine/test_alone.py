"""Compiled answers of the engine: those of ChatSession, whoever comes and goes beside them; refusals."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from PIL import Image
from watching import Gate

from llava.conversation import conv_templates
from llava.inference import ChatSession, SamplingParams, compiled
from llava.inference.engine import Alone, Dialog, Engine, Piece, Waiting
from llava.inference.loading import LoadedModel
from llava.inference.prompt import new_dialog
from llava.utils import UserError

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
LONG = SamplingParams(temperature=0, max_new_tokens=60)


@pytest.fixture(autouse=True)
def endless(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers reach their full length."""
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", None)


def ask(engine: Engine, text: str, images: list[Image.Image], params: SamplingParams = GREEDY) -> Any:
    """Send a question of its own."""
    dialog = new_dialog(conv_templates["llava_v1"], text, images, object(), has_tower=True)
    return engine.submit(dialog, params)


def alone_of(loaded: LoadedModel, backend: str | None = None, **options: Any) -> tuple[Alone, list[int]]:
    """Return the compiled step, and a list that takes the length of each row that it feeds."""
    alone, lengths = Alone(loaded.model, backend=backend, **options), []
    feed = alone.feed
    alone.feed = lambda row: (lengths.append(row.length), feed(row))[1]  # type: ignore[method-assign]
    return alone, lengths


def expected(loaded: LoadedModel, text: str, images: list[Image.Image], params: SamplingParams) -> str:
    """Return the answer of a session."""
    return ChatSession(loaded, template="llava_v1").ask(text, images, params)


def two_turns(engine: Engine, loaded: LoadedModel, image: Image.Image) -> None:
    """Ask about an image, and once more; compare with a session."""
    session = ChatSession(loaded, template="llava_v1")
    first = ask(engine, "What is this?", [image]).result(60)
    assert first.text == session.ask("What is this?", [image], GREEDY)
    dialog = session.conversation.copy()
    dialog.append_message(dialog.roles[0], "And why?")
    dialog.append_message(dialog.roles[1], None)
    second = engine.submit(Dialog(dialog, [image]), GREEDY)
    assert second.result(60).text == session.ask("And why?", (), GREEDY)
    assert second.usage.cached_tokens > 50


def test_two_turns_with_an_image(engine_of: Any, llama: LoadedModel, sample_image: Image.Image) -> None:
    alone, lengths = alone_of(llama)
    two_turns(engine_of(llama, alone=alone), llama, sample_image)
    assert len(lengths) == 2 * (GREEDY.max_new_tokens - 1)


def test_compiled_once_before_the_first_request(
    engine_of: Any, llama: LoadedModel, sample_image: Image.Image
) -> None:
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    engine = engine_of(llama, alone=alone_of(llama, "eager")[0])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    two_turns(engine, llama, sample_image)
    assert counters["stats"]["unique_graphs"] == 1  # nothing was compiled while somebody waited


@pytest.mark.parametrize("max_running", [1, 8])
def test_answers_that_come_and_go_beside_it(
    engine_of: Any, llama: LoadedModel, sample_image: Image.Image, max_running: int
) -> None:
    """One runs, others join and leave, one of them in the middle of its answer; the first is alone again."""
    alone, lengths = alone_of(llama)
    engine = engine_of(llama, alone=alone, max_running=max_running)
    others = [("Why?", []), ("Compare.", [sample_image.rotate(90)])]
    with Gate(llama.model) as gate:
        first = ask(engine, "What is this?", [sample_image], LONG)
        gate.run_until(lambda: first.usage.completion_tokens > 3)
        gone = ask(engine, "Tell me about the sea.", [], LONG)
        tickets = [ask(engine, *one) for one in others]
        places = [one.place for one in (gone, *tickets)]
        gate.run_until(lambda: gone.usage.completion_tokens > 3)
        gone.cancel()
        gate.open()
        answers = [one.result(60) for one in (first, *tickets)]
        left = gone.result(60)
    wanted = [expected(llama, "What is this?", [sample_image], LONG)]
    wanted += [expected(llama, *one, GREEDY) for one in others]
    assert [one.text for one in answers] == wanted
    assert left.finish_reason == "cancelled" and left.text
    assert expected(llama, "Tell me about the sea.", [], LONG).startswith(left.text)
    fed = sum(len(one.ids) - 1 for one in (*answers, left))
    if max_running == 1:
        assert places == [1, 2, 3] and len(lengths) == fed
    else:  # compiled at first, together with the others not, and compiled again at last
        own = [one - first.usage.prompt_tokens for one in lengths]
        assert own[:3] == [0, 1, 2] and own[-1] == LONG.max_new_tokens - 2
        assert len(lengths) < fed


def test_the_queue_tells_its_places(engine_of: Any, llama: LoadedModel) -> None:
    engine = engine_of(llama, alone=alone_of(llama)[0], max_running=1)
    with Gate(llama.model) as gate:
        running = ask(engine, "Hello", [], LONG)
        gate.run_until(lambda: running.usage.completion_tokens)
        waiting = iter(ask(engine, "Why?", []))
        events = [next(waiting)]
        gate.open()
        events += waiting
    assert events[0] == Waiting(1)
    text = "".join(one.text for one in events if isinstance(one, Piece))
    assert text == expected(llama, "Why?", [], GREEDY) and running.done


def test_log_probabilities_and_choices_are_those_without_it(engine_of: Any, llama: LoadedModel) -> None:
    dialog = new_dialog(conv_templates["llava_v1"], "Hello", [], object(), has_tower=True)
    drawn = SamplingParams(temperature=0.9, seed=3, max_new_tokens=8)
    found = []
    for alone in (None, alone_of(llama)[0]):
        engine = engine_of(llama, alone=alone)
        events = list(engine.submit(dialog, GREEDY, top_logprobs=2))
        tokens = [token for one in events if isinstance(one, Piece) for token in one.tokens]
        choices = [one.result(60) for one in engine.submit_choices(dialog, drawn, n=2)]
        found.append(([one.logprob for one in tokens], [token.id for token in tokens], choices))
    (plain, *same), (compiled, *also) = found
    assert same == also and compiled == pytest.approx(plain, abs=1e-4)


def test_an_answer_that_outgrows_the_cache_goes_on(
    engine_of: Any, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "FREE_POSITIONS", 8)
    alone, lengths = alone_of(llama, positions=100)
    engine = engine_of(llama, alone=alone)
    ticket = ask(engine, "Hello", [], LONG)
    assert ticket.result(60).text == expected(llama, "Hello", [], LONG)
    n_prompt = ticket.usage.prompt_tokens
    assert n_prompt < 100 < n_prompt + LONG.max_new_tokens
    assert lengths == list(range(n_prompt, 100))
    assert ask(engine, "Hello", []).result(60).text == expected(llama, "Hello", [], GREEDY)
    assert len(lengths) == 100 - n_prompt + GREEDY.max_new_tokens - 1  # the next one is compiled again


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_with_inductor(engine_of: Any, llama: LoadedModel, sample_image: Image.Image) -> None:
    torch.compiler.reset()
    alone, lengths = alone_of(llama, "inductor")
    two_turns(engine_of(llama, alone=alone), llama, sample_image)
    assert len(lengths) == 2 * (GREEDY.max_new_tokens - 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs(engine_of: Any, llama: LoadedModel, sample_image: Image.Image) -> None:
    llama.model.cuda()
    try:
        two_turns(engine_of(llama, alone=alone_of(llama, "inductor")[0]), llama, sample_image)
    finally:
        llama.model.cpu()


def test_a_model_that_cannot_be_compiled(load_family: Any) -> None:
    with pytest.raises(UserError, match="llava_mpt cannot be compiled.*omit compile"):
        Alone(load_family("mpt")[0].model)


def test_a_compiler_that_is_missing_keeps_the_engine_from_starting(llama: LoadedModel) -> None:
    def no_compiler(*args: Any) -> None:
        raise RuntimeError("No working C++ compiler found")

    torch.compiler.reset()
    with pytest.raises(UserError, match="torch.compile does not work here .*No working C.*Omit compile"):
        Engine(llama, alone=Alone(llama.model, backend=no_compiler))  # type: ignore[arg-type]
