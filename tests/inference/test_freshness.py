"""Answers after a change of the model are those of a new decoder, whatever was kept before it."""

import copy
import threading

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from watching import tower_calls

from llava.conversation import conv_templates
from llava.inference import Assistant, Decoder
from llava.inference.freshness import state_of
from llava.inference.pool import MAX_IDLE

GREEDY = {"temperature": 0, "max_new_tokens": 6}
IDS = [1, 305, 306, 307, 308, 309, 310, 311]


@torch.no_grad()
def step_of_an_optimizer(model):
    model.requires_grad_(True)
    for one in model.parameters():
        one.grad = torch.randn_like(one) * 0.3
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    model.zero_grad()


def load_state_dict(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


@torch.no_grad()
def through_data(model):
    for one in model.parameters():
        one.data.mul_(1.4)  # moves no version counter


def cast_there_and_back(model):
    model.bfloat16().float()


def cast(model):
    model.bfloat16()


def resize(model):
    model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + 8)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)


def adapters(model):
    for one in model.modules():
        if isinstance(one, BaseTunerLayer):
            yield one


def disable_adapter(model):
    for one in adapters(model):
        one.enable_adapters(False)


def switch_adapter(model):
    for one in adapters(model):
        one.set_adapter(["default" if one.active_adapters == ["second"] else "second"])


def merge_adapter(model):
    for one in adapters(model):
        one.merge()
        one.get_base_layer().weight.data.mul_(1.2)


def scale_adapter(model):
    for one in adapters(model):
        one.scaling = {name: 8 * value for name, value in one.scaling.items()}


CHANGES = {
    one.__name__: one
    for one in (step_of_an_optimizer, load_state_dict, through_data, cast_there_and_back, cast, resize)
}
ADAPTER_CHANGES = {
    one.__name__: one for one in (disable_adapter, switch_adapter, merge_adapter, scale_adapter)
}


def with_adapters(model):
    torch.manual_seed(5)
    targets = r".*layers\.\d+\.self_attn\.q_proj|.*blocks\.\d+\.attn\.Wqkv"
    for name in ("default", "second"):
        config = LoraConfig(r=2, lora_alpha=16, target_modules=targets, init_lora_weights=False)
        inject_adapter_in_model(config, model, adapter_name=name)
    return model.eval()


def prompt_of(model, sample_image, kind):
    return (IDS, []) if kind == "text" else ([*IDS[:3], -200, *IDS[3:]], [sample_image])


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("change", [*CHANGES, *ADAPTER_CHANGES])
def test_a_changed_model_is_asked_again(family, sample_image, change, kind):
    loaded, _ = family
    model = copy.deepcopy(loaded.model)
    if change in ADAPTER_CHANGES:
        with_adapters(model)
    ids, images = prompt_of(model, sample_image, kind)
    kept = Decoder(model, loaded.image_processor)
    before = kept.prefill(ids, images).float()
    {**CHANGES, **ADAPTER_CHANGES}[change](model)
    after = kept.prefill(ids, images)
    fresh = Decoder(model, loaded.image_processor).prefill(ids, images)
    assert torch.equal(after, fresh)
    assert before.shape != fresh.shape or not torch.equal(before, fresh.float())


def test_a_cache_of_training_mode_is_not_used_in_eval_mode(llama):
    model = copy.deepcopy(llama.model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    kept = Decoder(model.train(), llama.image_processor)
    kept.prefill(IDS)
    model.eval()
    assert torch.equal(kept.prefill(IDS), Decoder(model, llama.image_processor).prefill(IDS))


def test_weights_of_inference_mode_are_looked_at_too():
    with torch.inference_mode():
        model = torch.nn.Linear(3, 3)
        model.config = type("Config", (), {"to_dict": lambda self: {}})()
        before = state_of(model)
        model.weight.mul_(2)
        assert state_of(model) != before


def test_an_unchanged_model_keeps_its_state(family, sample_image):
    loaded, template = family
    assistant = Assistant(loaded, conv_templates[template])
    assistant.chat("What is this?", sample_image, **GREEDY)
    with tower_calls(loaded.model) as calls:
        assistant.chat("What is this?", sample_image, **GREEDY)
        assert not calls
        assistant.forget()
        assistant.chat("What is this?", sample_image, **GREEDY)
    assert len(calls) == 1


def test_forget_is_there_for_sessions(llama, sample_image):
    session = Assistant(llama, conv_templates["llava_v1"]).session()
    session.ask("What is this?", image=sample_image, **GREEDY)
    session.forget()
    with tower_calls(llama.model) as calls:
        session.ask("And its colour?", **GREEDY)
    assert len(calls) == 1 and len(session.conversation.messages) == 4


def test_threads_get_right_answers_and_few_decoders_are_kept(llama, sample_image):
    assistant = Assistant(llama, conv_templates["llava_v1"])
    texts = ["What is this?", "Hello", "Why?", "How are you?", "Go on"]
    expected = {text: assistant.chat(text, sample_image, **GREEDY) for text in texts}
    found = []

    def ask(text):
        found.extend((text, assistant.chat(text, sample_image, **GREEDY)) for _ in range(3))

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 15 and all(answer == expected[text] for text, answer in found)
    assert len(assistant._pool) <= MAX_IDLE
    streams = [assistant.stream(text, **GREEDY) for text in texts]
    assert all(next(one) is not None for one in streams)
    for one in streams:
        one.close()
    assert len(assistant._pool) == MAX_IDLE
