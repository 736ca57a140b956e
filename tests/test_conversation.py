"""Templates render as recorded; spans say what is an answer; the template is chosen from what is known."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image
from text_data import cases, check_image, from_base64, make_image

from llava import conversation
from llava.conversation import (
    CHAT_TEMPLATE,
    Conversation,
    SeparatorStyle,
    Span,
    choose_template,
    conv_templates,
)
from llava.utils import UserError

FILE = "conversation.json"
OBJECTS = [
    *("vicuna_v0", "vicuna_v1", "llama_2", "llava_llama_2", "mistral_instruct", "chatml_direct", "mpt"),
    *("llava_plain", "llava_v0", "llava_v0_mmtag", "llava_v1", "llava_v1_mmtag"),
]


def template(key: str) -> Conversation:
    return conversation.default_conversation if key == "default_conversation" else conv_templates[key]


def dialog(given: dict) -> Conversation:
    conv = template(given["template"]).copy()
    conv.system = given.get("system", conv.system)
    for role, message in given["messages"]:
        if isinstance(message, dict):
            message = (message["text"], make_image(message["image"]), message["mode"])
        conv.append_message(conv.roles[role], message)
    return conv


@pytest.mark.parametrize("case", cases(FILE, "templates"))
def test_templates_are_the_recorded_ones(case):
    conv, expected = template(case["id"]), case["expected"]
    for field in ("system", "offset", "sep", "sep2", "version", "skip_next", "messages"):
        assert getattr(conv, field) == expected[field]
    assert list(conv.roles) == expected["roles"]
    assert conv.sep_style is SeparatorStyle[expected["sep_style"]]


def test_all_names_of_the_reference_exist():
    assert {id(getattr(conversation, f"conv_{name}")) for name in OBJECTS} <= set(
        map(id, conv_templates.values())
    )
    assert conversation.default_conversation is conversation.conv_vicuna_v1


@pytest.mark.parametrize("case", cases(FILE, "prompts"))
def test_prompts_are_the_recorded_ones(case):
    conv, expected = dialog(case["input"]), case["expected"]
    if not isinstance(expected, dict):
        assert conv.get_prompt() == expected
    elif expected["raises"] in ("AssertionError", "ValueError"):
        with pytest.raises(UserError, match="the dialog begins with"):
            conv.get_prompt()


@pytest.mark.parametrize("key", [key for key in conv_templates if key != CHAT_TEMPLATE])
def test_spans_join_to_the_prompt_and_supervise_the_answers(key):
    conv = conv_templates[key].copy()
    for question, answer in (("What is it?", "A lamp."), ("And that?", "A door.")):
        conv.append_message(conv.roles[0], question)
        conv.append_message(conv.roles[1], answer)
    spans = conv.spans()
    assert "".join(span.text for span in spans) == conv.get_prompt()
    ends = {"SINGLE": "###", "TWO": "</s>", "PLAIN": "\n", "LLAMA_2": " </s>"}
    end = ends.get(conv.sep_style.name, conv.sep)
    assert [span.text for span in spans if span.supervised] == ["A lamp." + end, "A door." + end]
    assert all(span.text for span in spans)


def test_an_open_turn_and_the_exchange_about_an_image_are_not_supervised():
    conv = conv_templates["v1_mmtag"].copy()
    conv.append_message("USER", ("<image>\nWhat?", Image.new("RGB", (4, 4)), "Default"))
    conv.append_message("ASSISTANT", None)
    assert not any(span.supervised for span in conv.spans())
    assert conv.spans()[-1] == Span("ASSISTANT:", False)
    assert "<Image><image></Image> ASSISTANT: Received.</s>USER: What? ASSISTANT:" in conv.get_prompt()


def test_a_caption_dialog_renders_in_the_plain_style():
    conv = conv_templates["plain"].copy()
    conv.append_message("", "<image>")
    conv.append_message("", "a red kettle")
    assert conv.get_prompt() == "<image>\na red kettle\n"
    assert conv.spans()[-1] == Span("a red kettle\n", True)


@pytest.mark.parametrize("key", conv_templates)
def test_copies_are_independent(key):
    original = conv_templates[key]
    before = [list(turn) for turn in original.messages]
    twin = original.copy()
    twin.append_message("someone", "only here")
    twin.system, twin.messages[0][1], twin.skip_next = "changed", "overwritten", True
    assert original.messages == before and original.system != "changed"
    assert twin.copy().skip_next is False
    assert twin.copy().messages == twin.messages and twin.copy().messages[0] is not twin.messages[0]


@pytest.mark.parametrize("case", cases(FILE, "process_image"))
def test_processed_images_are_the_recorded_ones(case):
    given, expected = case["input"], case["expected"]
    limits = {name: given[name] for name in ("max_len", "min_len") if name in given}
    image, conv = make_image(given["image"]), conv_templates["v1"]
    if expected.get("raises") == "ValueError":
        with pytest.raises(UserError, match="image_process_mode is"):
            conv.process_image(image, given["mode"], return_pil=True, **limits)
    elif "raises" not in expected:
        check_image(conv.process_image(image, given["mode"], return_pil=True, **limits), expected)


def test_odd_images_are_processed():
    conv = conv_templates["v1"]
    assert conv.process_image(Image.new("L", (8, 4)), "Pad", return_pil=True).size == (8, 8)
    assert conv.process_image(Image.new("RGB", (1, 4000)), "Default", return_pil=True).size == (1, 1344)
    for mode in ("RGBA", "P", "LA", "L"):
        assert from_base64(
            conv.process_image(Image.new(mode, (8, 4)), "Default", image_format="JPEG")
        ).size == (8, 4)


@pytest.mark.parametrize("case", cases(FILE, "get_images"))
def test_images_of_a_dialog_are_the_recorded_ones(case):
    conv, expected = dialog(case["input"]), case["expected"]
    for got, want in zip(conv.get_images(return_pil=True), expected["pil"], strict=True):
        check_image(got, want)
    for got, want in zip(conv.get_images(), expected["png"], strict=True):
        assert from_base64(got).format == "PNG"
        check_image(from_base64(got), want)


@pytest.mark.parametrize("case", cases(FILE, "gradio"))
def test_gradio_rows_are_the_recorded_ones(case):
    rows, images = dialog(case["input"]).to_gradio_chatbot(), []
    for row in rows:
        if row[0].startswith("<img src="):
            before, data, after = row[0].replace(";base64,", '"', 1).split('"', 3)[1:]
            assert before == "data:image/jpeg"
            images.append(from_base64(data))
            row[0] = f'<img src="data:image/jpeg;base64,@"{after}'
    assert rows == case["expected"]["rows"]
    assert [list(sample_image.size) for sample_image in images] == [
        want["size"] for want in case["expected"]["pictures"]
    ]
    assert all(sample_image.format == "JPEG" for sample_image in images)


@pytest.mark.parametrize("case", cases(FILE, "dict"))
def test_dicts_are_the_recorded_ones(case):
    got = dialog(case["input"]).dict()
    assert {**got, "roles": list(got["roles"])} == case["expected"]


def test_running_the_module_prints_a_prompt():
    command = [sys.executable, "-m", "llava.conversation"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == conversation.default_conversation.get_prompt() + "\n"


YI = {"vocab_size": 64000, "image_aspect_ratio": "anyres", "mm_projector_type": "mlp2x_gelu"}


@pytest.mark.parametrize(
    ("name", "config", "key", "reason"),
    [
        ("llava-v1.5-7b", {"conv_template": "plain"}, "plain", "config.conv_template is 'plain'"),
        ("llava-v1.5-7b", {"conv_template": "nonsense"}, "llava_v1", "is no template here"),
        ("anything-v1", {"model_type": "llava_mpt"}, "mpt", "type 'llava_mpt'"),
        ("anything-v1", {"model_type": "llava_mistral"}, "mistral_instruct", "type 'llava_mistral'"),
        ("LLaVA-Llama-2-13b-chat", None, "llava_llama_2", "contains 'llama-2'"),
        ("llava-v1.6-mistral-7b", None, "mistral_instruct", "contains 'mistral'"),
        ("llava-v1.6-34b", None, "chatml_direct", "contains 'v1.6-34b'"),
        ("llava-v1.5-7b", {"model_type": "llava_llama", **YI}, "llava_v1", "contains 'v1'"),
        ("llava-mpt-7b", None, "mpt", "contains 'mpt'"),
        ("my-model", {"_name_or_path": "lmsys/vicuna-7b-v1.5"}, "llava_v1", "config._name_or_path"),
        ("my-model", YI, "chatml_direct", "64000 tokens"),
        ("my-model", {**YI, "vocab_size": 32000}, "llava_v1", "mlp2x_gelu"),
        ("my-model", {"mm_projector_type": "linear"}, "llava_v0", "linear projector"),
        ("my-model", {"mm_vision_tower": "clip"}, "llava_v0", "linear projector"),
        ("my-model", {}, "llava_v0", "neither the name 'my-model' nor the config"),
        ("my-model", None, "llava_v0", "neither the name"),
    ],
)
def test_the_template_is_chosen_by_one_rule(name, config, key, reason):
    for form in (config, None if config is None else SimpleNamespace(**config)):
        chosen, why = choose_template(name, form)
        assert chosen == key
        assert reason in why
