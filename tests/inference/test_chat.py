"""ChatSession: equal to generate, also with a kept cache, and in order after every kind of ending."""

import contextlib

import pytest
import torch
from PIL import Image
from watching import forwards, tower_calls

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.chat import ChatSession
from llava.inference.model_inputs import pixels_for
from llava.inference.sampling import SamplingParams
from llava.mm_utils import process_images, tokenizer_image_token
from llava.utils import UserError

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)


def session_of(loaded, template, **settings):
    return ChatSession(loaded.tokenizer, loaded.model, loaded.image_processor, template=template, **settings)


def generated(loaded, conversation, images, params):
    """Return the text of model.generate for an open dialog (last message None), as the reference asks."""
    ids = tokenizer_image_token(
        conversation.get_prompt(), loaded.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
    )
    extra = {}
    if images:
        extra["images"] = process_images(images, loaded.image_processor, loaded.model.config)
        extra["image_sizes"] = [one.size for one in images]
    if params.seed is not None:
        torch.manual_seed(params.seed)
    with torch.inference_mode():
        new_ids = loaded.model.generate(
            ids[None], attention_mask=torch.ones_like(ids[None]), **extra, **params.generate_kwargs()
        )
    return loaded.tokenizer.decode(new_ids[0], skip_special_tokens=True).strip()


def reopened(session):
    """Return a copy of the dialog with its last answer still to come."""
    copy = session.conversation.copy()
    copy.messages[-1][1] = None
    return copy


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(temperature=0.9, max_new_tokens=30, seed=3),
        SamplingParams(temperature=1.2, top_p=0.7, top_k=20, max_new_tokens=30, seed=4),
        SamplingParams(temperature=0, num_beams=3, max_new_tokens=10),
    ],
    ids=["greedy", "sampled", "top-p", "beams"],
)
def test_streamed_text_is_generates_text(family, sample_image, params):
    loaded, template = family
    session = session_of(loaded, template)
    pieces = list(session.stream("What is this?", [sample_image], params))
    assert "".join(pieces) == generated(loaded, reopened(session), [sample_image], params)
    assert "".join(pieces) == session.conversation.messages[-1][1]
    assert len(pieces) > 3 or params.num_beams > 1


def test_text_only_question(family):
    loaded, template = family
    session = session_of(loaded, template)
    assert session.ask("Hello", params=GREEDY) == generated(loaded, reopened(session), [], GREEDY)


def test_second_turn_computes_only_its_own_tokens(family, sample_image):
    loaded, template = family
    session = session_of(loaded, template)
    session.ask("What is this?", [sample_image], GREEDY)
    with forwards(loaded.model) as lengths, tower_calls(loaded.model) as calls:
        answer = session.ask("And the colour?", params=GREEDY)
    prompt = reopened(session).get_prompt()
    first_answer = session.conversation.messages[-3][1]
    assert answer == generated(loaded, reopened(session), [sample_image], GREEDY)
    assert not calls
    # at most the first answer (whose text may be tokenized again) and what follows it
    assert lengths[0] <= len(loaded.tokenizer(prompt[prompt.rindex(first_answer) :]).input_ids)


def test_image_in_a_later_turn(family, sample_image):
    loaded, template = family
    other = Image.new("RGB", (40, 70), (10, 200, 30))
    session = session_of(loaded, template)
    session.ask("What is this?", [sample_image], GREEDY)
    answer = session.ask("And <image> this?", [other], GREEDY)
    assert answer == generated(loaded, reopened(session), [sample_image, other], GREEDY)
    assert session.conversation.messages[-2][1] == "And <image> this?"


def test_two_images_in_a_turn(family, sample_image):
    loaded, template = family
    images = [sample_image, Image.new("RGB", (40, 70), (10, 200, 30))]
    session = session_of(loaded, template)
    answer = session.ask("Which is larger?", images, GREEDY)
    assert answer == generated(loaded, reopened(session), images, GREEDY)


def test_turn_after_a_stop_string(family, sample_image):
    loaded, template = family
    session = session_of(loaded, template)
    whole = session.ask("What is this?", [sample_image], GREEDY)
    stop = whole[len(whole) // 2 :][:3]
    session.reset()
    first = session.ask(
        "What is this?", [sample_image], SamplingParams(temperature=0, max_new_tokens=12, stop=stop)
    )
    assert first == whole[: whole.find(stop)].strip()
    assert session.finish_reason == "stop"
    answer = session.ask("Go on", params=GREEDY)
    assert answer == generated(loaded, reopened(session), [sample_image], GREEDY)


def test_turn_after_a_closed_answer(family, sample_image):
    loaded, template = family
    session = session_of(loaded, template)
    pieces = session.stream("What is this?", [sample_image], GREEDY)
    shown = next(pieces) + next(pieces)
    pieces.close()
    assert session.finish_reason == "interrupted"
    assert session.conversation.messages[-1][1] == shown
    answer = session.ask("Go on", params=GREEDY)
    assert answer == generated(loaded, reopened(session), [sample_image], GREEDY)


@pytest.mark.parametrize("at_pass", [0, 1, 6])
def test_turn_after_ctrl_c_in_the_middle_of_a_pass(family, sample_image, at_pass):
    loaded, template = family
    session = session_of(loaded, template)
    n_passes = 0

    def ctrl_c(*_):
        nonlocal n_passes
        n_passes += 1
        if n_passes == at_pass + 1:
            raise KeyboardInterrupt

    # behind the first layer: the cache holds one layer more than the others
    layer = next(
        m
        for name, m in loaded.model.named_modules()
        if name.endswith((".layers.0", ".blocks.0")) and "vision" not in name
    )
    handle = layer.register_forward_hook(ctrl_c)
    shown = ""
    try:
        with pytest.raises(KeyboardInterrupt):
            for piece in session.stream("What is this?", [sample_image], GREEDY):
                shown += piece
    finally:
        handle.remove()
    if shown:
        assert session.conversation.messages[-1][1] == shown
        sample_images = []
    else:  # the turn is withdrawn, the image may come again
        assert not session.images
        assert len(session.conversation.messages) == session.conversation.offset
        sample_images = [sample_image]
    answer = session.ask("Go on", sample_images, GREEDY)
    assert answer == generated(loaded, reopened(session), [sample_image], GREEDY)


def test_turn_after_an_edited_answer(family, sample_image):
    loaded, template = family
    session = session_of(loaded, template)
    session.ask("What is this?", [sample_image], GREEDY)
    session.ask("And the colour?", params=GREEDY)
    session.conversation.messages[1][1] = "A gradient."
    with tower_calls(loaded.model) as calls:
        answer = session.ask("Go on", params=GREEDY)
    assert not calls
    assert answer == generated(loaded, reopened(session), [sample_image], GREEDY)


def test_another_image_with_the_same_words_is_not_taken_from_the_cache(llama, sample_image):
    session = session_of(llama, "llava_v1")
    first = session.stream("What is this?", [sample_image], GREEDY)
    with contextlib.closing(first):
        next(first)
    del session.conversation.messages[-2:]
    session.images.clear()
    other = Image.effect_noise((64, 64), 90).convert("RGB")
    session.ask("What is this?", [other], GREEDY)
    fresh = session_of(llama, "llava_v1")
    assert session.conversation.messages == [
        *fresh.conversation.messages,
        ["USER", "<image>\nWhat is this?"],
        ["ASSISTANT", fresh.ask("What is this?", [other], GREEDY)],
    ]


def test_end_token_ends_the_answer(llama, monkeypatch):
    session = session_of(llama, "llava_v1")
    whole = session.ask("Hello", params=GREEDY)
    ids = tokenizer_image_token(reopened(session).get_prompt(), llama.tokenizer, return_tensors="pt")
    third = int(llama.model.generate(ids[None], **GREEDY.generate_kwargs())[0, 2])
    session.reset()
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [third, 2])
    answer = session.ask("Hello", params=GREEDY)
    assert session.finish_reason == "stop"
    assert whole.startswith(answer) and len(answer) < len(whole)


def test_cut_answer_says_length(llama):
    session = session_of(llama, "llava_v1")
    session.ask("Hello", params=SamplingParams(temperature=0, max_new_tokens=2))
    assert session.finish_reason == "length"


def test_full_context_cuts_the_answer_and_says_so(llama, sample_image, monkeypatch):
    session = session_of(llama, "llava_v1")
    with forwards(llama.model) as lengths:
        session.ask("Hello", [sample_image], GREEDY)
    monkeypatch.setattr(llama.model.config, "max_position_embeddings", lengths[0] + 3)
    session.reset()
    with forwards(llama.model) as lengths:
        session.ask("Hello", [sample_image], GREEDY)
    assert session.finish_reason == "context"
    assert len(lengths) == 3


def test_the_context_counts_the_cached_turns_too(llama, sample_image, monkeypatch):
    session = session_of(llama, "llava_v1")
    session.ask("What is this?", [sample_image], GREEDY)
    fresh = session_of(llama, "llava_v1")
    fresh.conversation = session.conversation.copy()
    fresh.images = [sample_image]
    with forwards(llama.model) as lengths:
        fresh.ask("And the colour?", params=GREEDY)
    monkeypatch.setattr(llama.model.config, "max_position_embeddings", lengths[0] + 3)
    with forwards(llama.model) as kept_lengths:
        session.ask("And the colour?", params=GREEDY)
    assert kept_lengths[0] < lengths[0]
    assert len(kept_lengths) == 3 and session.finish_reason == "context"


def test_a_stop_string_that_is_a_token_ends_the_answer_by_its_id(load_family):
    loaded, template = load_family("mpt")
    token = loaded.tokenizer.convert_tokens_to_ids("<|padding|>")
    passes = []

    def prefer(module, args, output):
        passes.append(1)
        if len(passes) == 4:
            output.logits[:, -1, token] = 1e9
        return output

    session = session_of(loaded, template)
    with contextlib.ExitStack() as stack:
        stack.callback(loaded.model.register_forward_hook(prefer).remove)
        session.ask("Hello", params=SamplingParams(temperature=0, max_new_tokens=12, stop="<|padding|>"))
    assert session.finish_reason == "stop" and len(passes) == 4


@pytest.mark.parametrize("beams", [1, 2])
def test_long_prompt_is_refused_and_the_session_goes_on(family, sample_image, monkeypatch, beams):
    loaded, template = family
    session = session_of(loaded, template)
    session.ask("What is this?", [sample_image], GREEDY)
    before = [list(one) for one in session.conversation.messages]
    params = SamplingParams(temperature=0, max_new_tokens=4, num_beams=beams)
    with pytest.raises(UserError, match=r"the prompt takes at least \d+ positions, but this model takes \d+"):
        session.ask("word " * 5000, params=params)
    assert session.conversation.messages == before
    answer = session.ask("Go on", params=GREEDY)
    assert answer == generated(loaded, reopened(session), [sample_image], GREEDY)


def test_image_that_does_not_fit_is_refused(llama, sample_image, monkeypatch):
    monkeypatch.setattr(llama.model.config, "tokenizer_model_max_length", 50, raising=False)
    session = session_of(llama, "llava_v1")
    with pytest.raises(UserError, match="this model takes 50"):
        session.ask("What is this?", [sample_image], GREEDY)
    assert not session.images and session.conversation.messages == []


@pytest.mark.parametrize(
    ("text", "n_images", "message"),
    [
        ("Is <image> like <image-placeholder>?", 1, "names 2 image.*but 1 came"),
        ("<image>", 2, "names 1 image.*but 2 came"),
        ("<image> alone", 0, "names 1 image.*but 0 came"),
        (" \n", 0, "question is empty"),
    ],
)
def test_questions_that_do_not_fit_their_images(llama, sample_image, text, n_images, message):
    session = session_of(llama, "llava_v1")
    with pytest.raises(UserError, match=message):
        session.ask(text, [sample_image] * n_images, GREEDY)
    assert session.conversation.messages == []


def test_images_may_be_paths(llama, sample_image, tmp_path):
    sample_image.save(tmp_path / "a.png")
    session = session_of(llama, "llava_v1")
    from_path = session.ask("What is this?", [tmp_path / "a.png"], GREEDY)
    assert from_path == session_of(llama, "llava_v1").ask("What is this?", [sample_image], GREEDY)
    with pytest.raises(UserError, match="missing.png"):
        session.ask("And this?", [tmp_path / "missing.png"], GREEDY)


def test_a_model_without_tower_refuses_images(llama, sample_image):
    session = ChatSession(llama.tokenizer, llama.model, None, template="llava_v1")
    with pytest.raises(UserError, match="no vision tower"):
        session.ask("What is this?", [sample_image], GREEDY)


def test_pixels_need_an_image_processor(llama, sample_image):
    with pytest.raises(TypeError, match="expected an image processor, got None"):
        pixels_for(llama.model, None, [sample_image])


def test_an_image_token_in_an_answer_does_not_ask_for_an_image(llama, monkeypatch):
    session = session_of(llama, "llava_v1")
    session.conversation.append_message("USER", "Hello")
    monkeypatch.setattr(llama.tokenizer, "decode", lambda ids, **_: "an <image> here", raising=False)
    session.reset()
    assert session.ask("Hello", params=GREEDY) == "an <image> here"
    assert session.conversation.messages[-1][1] == "an  here"
    monkeypatch.undo()
    session.ask("Again", params=GREEDY)


def test_start_and_end_tokens_are_put_round_the_image(checkpoints, sample_image):
    from llava.inference.loading import open_model

    loaded = open_model(str(checkpoints / "llava-tiny-v0"), device="cpu")
    session = session_of(loaded, "llava_v1")
    answer = session.ask("What is this?", [sample_image], GREEDY)
    assert session.conversation.messages[-2][1] == "<im_start><image><im_end>\nWhat is this?"
    assert answer == generated(loaded, reopened(session), [sample_image], GREEDY)
