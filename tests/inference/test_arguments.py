"""Questions and settings in the forms that people write them, and the settings that transformers knows."""

import numpy as np
import pytest
import torch

from llava.conversation import conv_templates
from llava.inference import Assistant, SamplingParams
from llava.inference.sampling import NextToken
from llava.utils import UserError

GREEDY = {"temperature": 0, "max_new_tokens": 6}


@pytest.fixture
def assistant(llama):
    return Assistant(llama, conv_templates["llava_v1"])


def test_natural_forms_give_the_same_answer(assistant, sample_image):
    expected = assistant.chat("What is this?", [sample_image], **GREEDY)
    assert assistant.chat("What is this?", image=sample_image, **GREEDY) == expected
    assert (
        assistant.chat("What is this?", images=sample_image, temperature=0, max_tokens=6, stop=None)
        == expected
    )
    assert assistant.session().ask("What is this?", image=sample_image, **GREEDY) == expected
    greedy = SamplingParams(temperature=0)
    assert assistant.session().ask("What is this?", [sample_image], greedy, max_tokens=6) == expected
    assert assistant.chat("Hello", images=None, **GREEDY) == assistant.chat("Hello", **GREEDY)
    assert assistant.batch([("Hello", None)], **GREEDY) == [assistant.chat("Hello", **GREEDY)]


@pytest.mark.parametrize("template", ["llava_v1", "mpt", "llava_llama_2"])
def test_a_system_text_takes_the_place_of_the_templates(llama, template):
    session = Assistant(llama, conv_templates[template]).session(system="Be brief.")
    session.ask("Hello", **GREEDY)
    prompt = session.conversation.get_prompt()
    assert "Be brief." in prompt and conv_templates[template].system not in prompt
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>") or template != "mpt"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"temprature": 0},
            "temprature is no setting of an answer; did you mean temperature.*The known ones",
        ),
        ({"max_tokens": 3, "max_new_tokens": 4}, "max_new_tokens was given twice"),
        ({"min_p": 2}, "min_p is 2; expected a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected 0.01 to 100 .1 is none"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty is 1e-300; expected 0.01 to 100"),
        ({"stop": 3}, "stop is 3; expected a string or several"),
    ],
)
def test_bad_settings_are_one_sentence(assistant, settings, message):
    for ask in (assistant.chat, assistant.session().ask):
        with pytest.raises(UserError, match=message):
            ask("Hello", **settings)
    with pytest.raises(UserError, match=message):
        assistant.batch(["Hello"], **settings)


NO_IMAGES = {
    "number": 7,
    "bytes": b"png",
    "array": np.zeros((4, 4, 3), np.uint8),
    "tensor": torch.zeros(3, 4, 4),
    "view": {"url": "a"}.values(),
}


@pytest.mark.parametrize("image", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_one_sentence(assistant, image):
    for ask in (assistant.chat, assistant.session().ask):
        with pytest.raises(UserError, match=r"the image is a \w+; expected a Pillow image"):
            ask("Hello", image)
        with pytest.raises(UserError, match=r"the image is a \w+; expected a Pillow image"):
            ask("Hello", image=image)
    with pytest.raises(UserError, match=r"question 1: the image is a \w+; expected a Pillow image"):
        assistant.batch(["Hello", ("Hello", image)])


def test_bad_questions_are_one_sentence(assistant, sample_image):
    with pytest.raises(UserError, match="batch takes a list of questions and got a str"):
        assistant.batch("Hello")
    with pytest.raises(UserError, match="batch takes a list of questions and got a NoneType"):
        assistant.batch(None)
    with pytest.raises(UserError, match="question 1: it is a int; expected a text"):
        assistant.batch(["Hello", 7])
    with pytest.raises(UserError, match="image and images were both given"):
        assistant.chat("Hello", [sample_image], image=sample_image)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7, "temperature": 0},
        {"min_p": 0.2, "temperature": 1.3, "seed": 4},
        {"repetition_penalty": 1.4, "min_p": 0.1, "top_k": 20, "top_p": 0.9, "temperature": 1.1, "seed": 2},
    ],
)
def test_penalty_and_min_p_are_those_of_generate(family, settings):
    loaded, _ = family
    params = SamplingParams(**settings, max_new_tokens=20)
    ids = torch.tensor([[1, 305, 306, 307]])
    torch.manual_seed(params.seed or 0)
    expected = loaded.model.generate(ids, **params.generate_kwargs(), eos_token_id=None)[0].tolist()
    choose = NextToken(params, loaded.model.generation_config, torch.device("cpu"))
    found, past, inputs = [], None, ids
    with torch.inference_mode():
        while len(found) < 20:
            out = loaded.model(input_ids=inputs, past_key_values=past, use_cache=True)
            found.append(choose(out.logits[:, -1], found))
            past, inputs = out.past_key_values, torch.tensor([[found[-1]]])
    assert found == expected
