"""Compiled decoding: the same tokens as without, what is kept between turns, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.inference import compiled
from llava.inference.chat import ChatSession
from llava.inference.compiled import CompiledDecoder
from llava.inference.decoder import Decoder
from llava.inference.loading import LoadedModel, open_model
from llava.inference.sampling import SamplingParams
from llava.utils import UserError

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
PROMPT = [1, 300, 301, 302, 303]


@pytest.fixture(autouse=True)
def endless(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers reach their full length, and caches start small."""
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(compiled, "FREE_POSITIONS", 8)


def dialog(
    loaded: LoadedModel, template: str, sample_image: Image.Image, decoder: Decoder | None
) -> list[Any]:
    """Ask three questions, the second one twice; return answers and how many positions each prefill took."""
    session = ChatSession(*loaded[:3], template=template, decoder=decoder)
    extend, prefills = session.decoder._extend, []
    session.decoder._extend = lambda keys: (prefills.append(len(keys)), extend(keys))[1]
    answers = [session.ask("What is this?", [sample_image], GREEDY), session.ask("And why?", (), GREEDY)]
    del session.conversation.messages[-2:]
    answers += [
        session.ask("And when?", (), GREEDY),
        session.ask("Compare.", [sample_image.rotate(90)], GREEDY),
    ]
    session.decoder._extend = extend
    return [*answers, prefills]


def greedy(decoder: Decoder, n_tokens: int, prompt: list[int] = PROMPT) -> list[int]:
    """Return the likeliest ids that follow a prompt."""
    logits, new_ids = decoder.prefill(prompt), []
    for _ in range(n_tokens):
        new_ids.append(int(logits.argmax()))
        logits = decoder.step(new_ids[-1])
    return new_ids


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_cache_of_fixed_size_gives_the_same_answers(
    name: str, load_family: Any, sample_image: Image.Image
) -> None:
    loaded, template = load_family(name)
    expected = dialog(loaded, template, sample_image, None)
    decoder = CompiledDecoder(loaded.model, loaded.image_processor, backend=None)
    assert dialog(loaded, template, sample_image, decoder) == expected
    assert dialog(loaded, template, sample_image, decoder)[0] == expected[0]  # the next session


def test_compiled_without_a_graph_break(llama: LoadedModel, sample_image: Image.Image) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    decoder = CompiledDecoder(llama.model, llama.image_processor, backend="eager")
    expected = dialog(llama, "llava_v1", sample_image, None)
    assert dialog(llama, "llava_v1", sample_image, decoder) == expected
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1  # for all steps of all turns


def test_cache_grows(llama: LoadedModel) -> None:
    decoder = CompiledDecoder(llama.model, backend=None, smallest_cache=8)
    assert greedy(decoder, 40) == greedy(Decoder(llama.model), 40)
    assert decoder.compiled.size == 64


def test_cache_is_no_larger_than_the_context(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.model.config, "max_position_embeddings", 20)
    decoder = CompiledDecoder(llama.model, backend=None)
    greedy(decoder, 15)
    assert (decoder.compiled.size, decoder.room) == (20, 0)


@pytest.mark.parametrize("window", [4, 7])
def test_sliding_window(window: int, load_family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask cuts the window out of a cache that keeps every position, so that turns can be cut back."""
    model = load_family("mistral")[0].model
    free = greedy(Decoder(model), 12)
    monkeypatch.setattr(model.config, "sliding_window", window)
    expected = greedy(Decoder(model), 12)
    assert expected != free
    decoder = CompiledDecoder(model, backend=None)
    assert greedy(decoder, 12) == expected
    assert greedy(decoder, 12, [*PROMPT[:4], 310]) == greedy(Decoder(model), 12, [*PROMPT[:4], 310])


def test_an_interrupted_step_leaves_no_trace(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = CompiledDecoder(llama.model, backend=None)
    expected = greedy(decoder, 6)
    layer = llama.model.model.layers[1]

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder.step(expected[0])
    assert greedy(decoder, 6) == expected


def test_results_of_earlier_steps_stay(llama: LoadedModel) -> None:
    decoder = CompiledDecoder(llama.model, backend=None)
    decoder.prefill(PROMPT)
    first = decoder.step(300)
    kept = first.clone()
    decoder.step(301)
    assert torch.equal(first, kept)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_compiled_with_inductor(name: str, load_family: Any, sample_image: Image.Image) -> None:
    loaded, template = load_family(name)
    expected = dialog(loaded, template, sample_image, None)
    decoder = CompiledDecoder(loaded.model, loaded.image_processor)
    assert dialog(loaded, template, sample_image, decoder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["load_4bit", "load_8bit"])
def test_quantised_models(flag: str, checkpoints: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    loaded = open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu", dtype="float32", **{flag: True})
    decoder = CompiledDecoder(loaded.model, backend="eager")
    assert greedy(decoder, 10) == greedy(Decoder(loaded.model), 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_graphs(dtype: str, checkpoints: Path, sample_image: Image.Image) -> None:
    loaded = open_model(str(checkpoints / "llava-tiny-v1.5"), device="cuda", dtype=dtype)
    loaded.model.generation_config.eos_token_id = None
    decoder = CompiledDecoder(loaded.model, loaded.image_processor)
    expected = dialog(loaded, "llava_v1", sample_image, None)
    assert dialog(loaded, "llava_v1", sample_image, decoder) == expected


# ----------------------------------------------------------------------------------------------- refused


def test_mpt_cannot_be_compiled(load_family: Any) -> None:
    with pytest.raises(UserError, match="llava_mpt cannot be compiled.*omit compile"):
        CompiledDecoder(load_family("mpt")[0].model)


def test_mps() -> None:
    with pytest.raises(UserError, match="compile is for CUDA.* on mps omit it"):
        compiled.check_compile_device("mps")


def test_a_model_on_several_devices(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.model, "_hf_hook", object(), raising=False)
    with pytest.raises(UserError, match="spread over several devices"):
        CompiledDecoder(llama.model)


def test_a_compiler_that_is_missing(llama: LoadedModel) -> None:
    def no_compiler(*args: Any) -> None:
        raise RuntimeError("No working C++ compiler found")

    torch.compiler.reset()
    decoder = CompiledDecoder(llama.model, backend=no_compiler)
    with pytest.raises(
        UserError, match=r"torch.compile does not work here .*No working C\+\+ compiler.*compile"
    ):
        greedy(decoder, 2)
