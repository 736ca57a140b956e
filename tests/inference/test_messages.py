"""Dialogs in OpenAI's form: the same answers as the other forms, and a sentence for what cannot be read."""

import base64
import io

import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.inference import Assistant
from llava.inference.messages import read_messages
from llava.utils import UserError

GREEDY = {"temperature": 0, "max_new_tokens": 6}
OTHER = Image.radial_gradient("L").resize((50, 40)).convert("RGB")


@pytest.fixture
def assistant(llama):
    return Assistant(llama, conv_templates["llava_v1"])


def data_url(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def text(value):
    return {"type": "text", "text": value}


def url(image):
    return {"type": "image_url", "image_url": {"url": data_url(image), "detail": "original"}}


def user(*content):
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistants(content):
    return {"role": "assistant", "content": content}


def placed(template, *messages):
    dialog = read_messages(messages, conv_templates[template], object(), has_tower=True)
    return dialog.conversation.get_prompt(), len(dialog.images)


def test_a_dialog_of_messages_is_answered_as_its_session(assistant, sample_image):
    session = assistant.session()
    first = session.ask("What is this?", sample_image, **GREEDY)
    second = session.ask("And this?", OTHER, **GREEDY)
    messages = [
        user(text("What is this?"), url(sample_image)),
        assistants(first),
        user(url(OTHER), text("And this?")),
    ]
    assert assistant.chat(messages[:1], **GREEDY) == first
    assert assistant.chat(messages, **GREEDY) == second
    assert "".join(assistant.stream(messages, **GREEDY)) == second
    assert assistant.batch([messages, "Hello", messages[:1]], **GREEDY) == [
        second,
        assistant.chat("Hello", **GREEDY),
        first,
    ]
    begun = assistant.session(messages[:2])
    assert begun.ask("And this?", OTHER, **GREEDY) == second


def test_paths_and_images_of_python_are_taken_as_well(assistant, sample_image, tmp_path):
    sample_image.save(tmp_path / "a.png")
    expected = assistant.chat("What is this?", sample_image, **GREEDY)
    for part in (
        {"type": "image", "image": sample_image},
        {"type": "image", "image": tmp_path / "a.png"},
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image_url", "image_url": str(tmp_path / "a.png")},
        {"type": "input_image", "image_url": data_url(sample_image)},
    ):
        assert (
            assistant.chat([user(part, {"type": "input_text", "text": "What is this?"})], **GREEDY)
            == expected
        )


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ((text("What?"), url(OTHER)), "<image>\nWhat?"),
        ((url(OTHER), text("What?"), url(OTHER)), "<image>\n<image>\nWhat?"),
        ((text("First:"), url(OTHER), text("Second:"), url(OTHER)), "First:\n<image>\nSecond:\n<image>"),
        ((url(OTHER), url(OTHER), text("Compare <image> with <image>.")), "Compare <image> with <image>."),
        ((url(OTHER),), "<image>\n"),
        ((text("One"), text("two")), "One\ntwo"),
        (("Plain",), "Plain"),
    ],
)
def test_images_stand_where_the_model_saw_them(content, question):
    prompt, _ = placed("llava_v1", user(*content))
    assert f"USER: {question} ASSISTANT:" in prompt


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("template", ["llava_v1", "mpt", "llava_llama_2"])
def test_system_texts_take_the_place_of_the_templates(template, role):
    messages = [{"role": role, "content": "Be brief."}, {"role": "system", "content": "Be kind."}, user("Hi")]
    prompt, _ = placed(template, *messages)
    assert "Be brief.\nBe kind." in prompt and conv_templates[template].system not in prompt


def test_messages_of_one_role_are_one_turn():
    prompt, images = placed(
        "llava_v1", user("Hello"), user(url(OTHER), text("What?")), assistants("No <image>."), user("Why?")
    )
    assert "USER: Hello\n<image>\nWhat? ASSISTANT: No .</s>USER: Why? ASSISTANT:" in prompt
    assert images == 1


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "expected a list of objects"),
        ([{"role": "tool", "content": "x"}], "message 0: its role is 'tool'; expected system, developer"),
        ([user("Hi"), {"role": "assistant"}], "message 1: its content is missing; expected a text"),
        ([user("Hi"), assistants("Hello")], "the last message is the assistant's"),
        ([assistants("Hello"), user("Hi")], "message 0: it is the assistant's; a user's message"),
        ([{"role": "system", "content": "x"}], "none is a user's"),
        (
            [user("Hi"), {"role": "system", "content": "x"}],
            "message 1: a system message stands behind",
        ),
        ([user(text("Hi"), {"type": "input_audio"})], "message 0, part 1: its type is 'input_audio'"),
        ([user({"type": "text"})], "message 0, part 0: its text is missing"),
        ([user({"type": "image_url", "image_url": {}})], "message 0, part 0: its image_url is missing"),
        ([user({"type": "image", "image": 7})], "message 0, part 0: its image is a int"),
        ([user({"type": "image_url", "image_url": "data:image/png,xx"})], "has no base64 content"),
        ([{"role": "assistant", "content": [url(OTHER)]}], "an image in a message of the assistant"),
        ([user("Look: <image>")], "message 0: the question names 1 image"),
        ([user("  ")], "message 0: the question is empty"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(messages, told):
    with pytest.raises(UserError, match=told) as caught:
        placed("llava_v1", *messages)
    assert "\n" not in str(caught.value)


def test_images_are_made_by_the_callers_function(sample_image):
    asked = []

    def resolve(address):
        asked.append(address)
        return sample_image

    dialog = read_messages(
        [user({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, text("What?"))],
        conv_templates["llava_v1"],
        object(),
        has_tower=True,
        resolve=resolve,
    )
    assert asked == ["https://example.com/a.png"] and dialog.images == [sample_image]


def test_arguments_that_belong_into_the_messages_are_refused(assistant, sample_image):
    messages = [user("Hi")]
    with pytest.raises(UserError, match="belong into the messages"):
        assistant.chat(messages, sample_image, **GREEDY)
    with pytest.raises(UserError, match="belong into the messages"):
        assistant.chat(messages, system="x", **GREEDY)
    with pytest.raises(UserError, match="the last message is a user's"):
        assistant.session(messages)
    with pytest.raises(UserError, match="question 1: message 0: its role"):
        assistant.batch(["Hello", [{"role": "tool", "content": "x"}]], **GREEDY)
