"""llava.load: one question, streams, batches and sessions from one short object."""

import pytest
import torch
from PIL import Image
from watching import tower_calls

import llava
from llava.conversation import conv_templates
from llava.inference import Assistant, ChatSession, CompiledDecoder, Dialog, SamplingParams, open_model
from llava.utils import UserError

GREEDY = {"temperature": 0, "max_new_tokens": 10}


@pytest.fixture
def assistant(load_family) -> Assistant:
    loaded, template = load_family("llama")
    return Assistant(loaded, conv_templates[template])


def expected(assistant, text, images=()):
    loaded = (assistant.tokenizer, assistant.model, assistant.image_processor)
    session = ChatSession(*loaded, template=assistant.template)
    return session.ask(text, images, SamplingParams(**GREEDY))


def other_image(number):
    return Image.radial_gradient("L").resize((50 + 9 * number, 40)).convert("RGB")


def test_load_chooses_device_dtype_and_template(checkpoints, sample_image):
    model = llava.load(checkpoints / "llava-tiny-v1.5", device="cpu", dtype="float32")
    assert model.template.version == conv_templates["llava_v1"].version
    assert model.model.dtype == torch.float32 and not model.model.training
    assert "LlavaLlamaForCausalLM on cpu in torch.float32" in repr(model)
    assert model.context_len == 2048
    assert model.chat("What is this?", sample_image, **GREEDY) == expected(
        model, "What is this?", [sample_image]
    )


def test_load_takes_a_base_and_a_template(checkpoints):
    model = llava.load(
        checkpoints / "llava-tiny-pretrain", checkpoints / "vicuna-tiny", template="llava_v0", device="cpu"
    )
    assert model.template is conv_templates["llava_v0"]
    assert model.chat("Hello", **GREEDY) == expected(model, "Hello")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "vicuna"}, "conv-mode is 'vicuna'; the known ones are"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "float12"}, "dtype is 'float12'"),
    ],
)
def test_load_refuses_what_it_does_not_know(checkpoints, settings, message):
    with pytest.raises(UserError, match=message):
        llava.load(checkpoints / "llava-tiny-v1.5", **{"device": "cpu", **settings})


def test_each_chat_is_a_dialog_of_its_own(assistant, sample_image):
    assistant.chat("What is this?", [sample_image], **GREEDY)
    assert assistant.chat("Hello", **GREEDY) == expected(assistant, "Hello")


def test_a_second_question_about_an_image_runs_no_tower(assistant, sample_image):
    first = assistant.chat("What is this?", [sample_image], **GREEDY)
    with tower_calls(assistant.model) as calls:
        again = assistant.chat("And its colour?", sample_image.copy(), **GREEDY)  # told by content
    assert not calls
    assert again == expected(assistant, "And its colour?", [sample_image])
    assert assistant.chat("What is this?", [sample_image], **GREEDY) == first


def test_an_image_painted_over_is_another_image(assistant, sample_image):
    assistant.chat("What is this?", [sample_image], **GREEDY)
    changed = sample_image.copy()
    changed.paste((255, 0, 0), (0, 0, 40, 40))
    assert assistant.chat("What is this?", [changed], **GREEDY) == expected(
        assistant, "What is this?", [changed]
    )


def test_two_streams_at_once_do_not_mix(assistant, sample_image):
    texts = ("What is this?", "Hello")
    images = ([sample_image], [])
    streams = [assistant.stream(*one, **GREEDY) for one in zip(texts, images, strict=True)]
    found = ["", ""]
    running = {0, 1}
    while running:
        for index in sorted(running):
            piece = next(streams[index], None)
            if piece is None:
                running.remove(index)
            else:
                found[index] += piece
    assert found == [expected(assistant, *one) for one in zip(texts, images, strict=True)]


def test_a_broken_off_stream_leaves_the_next_answer_alone(assistant, sample_image):
    stream = assistant.stream("What is this?", [sample_image], **GREEDY)
    next(stream)
    stream.close()
    assert assistant.chat("Hello", **GREEDY) == expected(assistant, "Hello")


def test_a_session_remembers(assistant, sample_image):
    session = assistant.session()
    session.ask("What is this?", [sample_image], SamplingParams(**GREEDY))
    with tower_calls(assistant.model) as calls:
        session.ask("And its colour?", params=SamplingParams(**GREEDY))
    assert not calls and len(session.conversation.messages) == 4


def test_a_session_gives_one_answer_at_a_time(assistant):
    session = assistant.session()
    first = session.stream("Hello", params=SamplingParams(**GREEDY))
    next(first)
    with pytest.raises(UserError, match="last answer is not finished"):
        session.ask("Why?", params=SamplingParams(**GREEDY))
    first.close()
    session.ask("Why?", params=SamplingParams(**GREEDY))
    assert len(session.conversation.messages) == 4


def test_a_new_image_costs_no_tower_pass_over_the_old_one(assistant, sample_image):
    session = assistant.session()
    session.ask("What is this?", [sample_image], SamplingParams(**GREEDY))
    batches = []
    handle = assistant.model.get_vision_tower().register_forward_pre_hook(
        lambda _, args: batches.append(len(args[0]))
    )
    try:
        session.ask("And this?", [other_image(1)], SamplingParams(**GREEDY))
    finally:
        handle.remove()
    assert batches == [1]


def test_batches_take_texts_pairs_and_dialogs(assistant, sample_image, tmp_path):
    sample_image.save(tmp_path / "a.png")
    conversation = assistant.template.copy()
    conversation.append_message(conversation.roles[0], "Why?")
    conversation.append_message(conversation.roles[1], None)
    questions = [
        "Hello",
        ("What is this?", [other_image(1)]),
        ("What is this?", tmp_path / "a.png"),
        ("Compare <image> and <image>", [sample_image, other_image(2)]),
        Dialog(conversation),
    ]
    answers = assistant.batch(questions, batch_size=3, **GREEDY)
    assert answers == [
        expected(assistant, "Hello"),
        expected(assistant, "What is this?", [other_image(1)]),
        expected(assistant, "What is this?", [sample_image]),
        expected(assistant, "Compare <image> and <image>", [sample_image, other_image(2)]),
        expected(assistant, "Why?"),
    ]
    whole = assistant.answers(questions, **GREEDY)
    assert [one.text for one in whole] == answers
    assert {one.finish_reason for one in whole} <= {"stop", "length"}


def test_sharded_in_one_process_is_the_plain_batch(assistant, sample_image):
    questions = ["Hello", ("What is this?", [sample_image]), "Why?"]
    assert assistant.batch(questions, sharded=True, **GREEDY) == assistant.batch(questions, **GREEDY)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (("What is this?", "/nowhere/a.png"), "question 1: the image '/nowhere/a.png' cannot be read"),
        ("", "question 1: the question is empty"),
        (("<image> or <image>?", [other_image(1)]), "question 1: the question names 2 image"),
    ],
)
def test_a_bad_question_of_a_batch_is_named(assistant, question, message):
    with pytest.raises(UserError, match=message):
        assistant.batch(["Hello", question], **GREEDY)


@pytest.mark.parametrize("settings", [{"temperature": float("nan")}, {"top_p": -1}, {"max_new_tokens": 0}])
def test_bad_settings_are_told_at_once_and_the_model_goes_on(assistant, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        assistant.stream("Hello", **settings)
    with pytest.raises(UserError, match=next(iter(settings))):
        assistant.batch(["Hello"], **settings)
    assert assistant.chat("Hello", **GREEDY) == expected(assistant, "Hello")


def test_a_text_model_chats_too(checkpoints, sample_image):
    model = llava.load(checkpoints / "vicuna-tiny", device="cpu")
    assert model.image_processor is None
    assert len(model.batch(["Hello", "Why?"], **GREEDY)) == 2
    with pytest.raises(UserError, match="no vision tower"):
        model.chat("What is this?", [sample_image], **GREEDY)


def test_the_best_device_of_a_launched_process_is_its_own_gpu(monkeypatch):
    from llava.inference import loading

    monkeypatch.setattr(loading, "best_device", lambda: "cuda")
    assert loading.check_device(None) == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert loading.check_device(None) == "cuda:3"


def test_open_model_takes_a_dtype(checkpoints):
    loaded = open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu", dtype="float16")
    assert loaded.model.dtype == torch.float16


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "YCbCr"])
def test_images_of_any_mode_are_those_of_their_files(assistant, sample_image, tmp_path, mode):
    converted = (
        Image.new("I;16", (40, 30), 30000)
        if mode == "I;16"
        else sample_image.convert("L").convert(mode)
        if mode in ("LA", "1")
        else sample_image.convert(mode)
    )
    file = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    converted.save(file, **({"quality": 100, "subsampling": 0} if file.suffix == ".jpg" else {}))
    reopened = Image.open(file)  # not decoded yet
    assert assistant.chat("What is this?", reopened, **GREEDY) == assistant.chat(
        "What is this?", file, **GREEDY
    )


def test_images_that_cannot_be_used_are_told_and_the_model_goes_on(assistant, sample_image, tmp_path):
    sample_image.resize((300, 300)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:400])
    cases = [
        (Image.open(tmp_path / "cut.png"), "cut.png' is damaged"),
        (Image.new("F", (8, 8)), "floating-point pixels"),
        (torch.zeros(3, 8, 8), "an image is a Tensor; expected a Pillow image"),
        (None, "an image is a NoneType"),
        (Image.new("1", (30000, 30000)), "30000 x 30000 pixels"),
    ]
    for image, message in cases:
        with pytest.raises(UserError, match=message):
            assistant.chat("What is this?", [image], **GREEDY)
    with pytest.raises(UserError, match="the question is a NoneType"):
        assistant.chat(None, [sample_image], **GREEDY)
    assert assistant.chat("Hello", **GREEDY) == expected(assistant, "Hello")


def test_a_shared_decoder_serves_one_answer_at_a_time(load_family, sample_image):
    loaded, template = load_family("llama")
    decoder = CompiledDecoder(loaded.model, loaded.image_processor, backend=None)
    shared = Assistant(loaded, conv_templates[template], decoder)
    assert shared.chat("What is this?", [sample_image], **GREEDY) == expected(
        shared, "What is this?", [sample_image]
    )
    session = shared.session()
    assert session.decoder is decoder
    with tower_calls(loaded.model) as calls:
        assert session.ask("What is this?", [sample_image], SamplingParams(**GREEDY))
    assert not calls
    first = shared.stream("Hello", **GREEDY)
    next(first)
    assert shared.chat("Why?", **GREEDY) == expected(shared, "Why?")
    with pytest.raises(UserError, match="another answer has begun on the same decoder"):
        list(first)
    assert shared.chat("Hello", **GREEDY) == expected(shared, "Hello")


def test_load_compiles_on_request_and_says_where_it_cannot(checkpoints):
    model = llava.load(checkpoints / "llava-tiny-v1.5", device="cpu", compile=True)
    assert isinstance(model.session().decoder, CompiledDecoder)
    with pytest.raises(UserError, match="cannot be compiled"):
        llava.load(checkpoints / "llava-tiny-mpt", device="cpu", compile=True)
