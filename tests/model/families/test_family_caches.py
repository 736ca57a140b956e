"""Caches of families with sliding windows and states: cut back or computed again, joined or refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from table import IMAGE, Case, batch, build_case

from llava.inference.batch import Reader, answer_all, same
from llava.inference.decoder import Decoder
from llava.inference.dialog import RawPrompt
from llava.inference.engine.kv import new_cache, refuse_states
from llava.inference.engine.prefill import ModelCall
from llava.inference.model import LoadedModel
from llava.inference.sampling import SamplingParams
from llava.model.tokenizer import load_tokenizer
from llava.utils import UserError

WINDOWS, STATES = ("gemma3_text", "gpt_oss"), ("qwen3_next", "lfm2")


@pytest.fixture(scope="module")
def case(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Build the case of a family once."""
    return cache(lambda name: build_case(name, tower, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("base_type", [*WINDOWS, *STATES])
def test_a_prompt_that_begins_like_another_is_computed_right(
    base_type: str, case: Callable[[str], Case]
) -> None:
    model = case(base_type).model
    first = [one for one in batch()["input_ids"][0].tolist() if one != IMAGE]  # longer than the windows
    second = [*first[:11], 7, 9, 11]
    decoder = Decoder(model)
    decoder.prefill(first)
    decoder.step(5)
    found = decoder.prefill(second)
    assert torch.allclose(found, Decoder(model).prefill(second), atol=1e-5)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[*second, 8]]), use_cache=False).logits[:, -1]
    assert torch.allclose(decoder.step(8), expected, atol=1e-5)


@pytest.mark.parametrize("base_type", WINDOWS)
def test_rows_that_run_together_keep_their_windows(base_type: str, case: Callable[[str], Case]) -> None:
    model = case(base_type).model
    ids = batch()["input_ids"].clamp(min=3)
    refuse_states(model.config)
    together = new_cache()
    call, embed = ModelCall(model), model.get_input_embeddings()
    with torch.no_grad():
        for start in range(0, 15, 5):  # the second row has 4 columns of padding in front
            lengths = [start + 5, start + 1]
            found = call(together, lengths, 5, inputs_embeds=embed(ids[:, start : start + 5]))
        alone = [model(input_ids=row[None]).logits[0, -1] for row in (ids[0], ids[1, 4:])]
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)


@pytest.mark.parametrize("base_type", ["qwen2", *WINDOWS])
def test_prompts_of_a_batch_that_begin_alike_are_answered_as_alone(
    base_type: str, case: Callable[[str], Case], checkpoints: Path
) -> None:
    model = case(base_type).model
    tokenizer = load_tokenizer(str(checkpoints / "llava-tiny-v1.5"))
    loaded = LoadedModel(tokenizer, model, model.get_vision_tower().image_processor, 256)
    images = [Image.effect_noise((60, 60), sigma).convert("RGB") for sigma in (40, 90)]
    texts = batch()["input_ids"].clamp(min=3).tolist()  # longer than the windows
    prompts = [
        RawPrompt([*texts[0], 5, IMAGE, *texts[1][:number], 6 + number], [images[number % 2]])
        for number in range(6)
    ]
    reader = Reader(loaded, SamplingParams(temperature=0, max_new_tokens=6), same)
    found = answer_all(reader, prompts, batch_size=3)
    assert found == {number: answer_all(reader, [one])[0] for number, one in enumerate(prompts)}
    assert len({one.ids for one in found.values()}) > 1


@pytest.mark.parametrize("base_type", STATES)
def test_an_engine_refuses_states(base_type: str, case: Callable[[str], Case]) -> None:
    with pytest.raises(UserError, match=f"llava_{base_type} keeps a state of the text instead of keys"):
        refuse_states(case(base_type).model.config)
