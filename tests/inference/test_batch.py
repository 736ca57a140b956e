"""generate_batch: the answers of asking one by one, whatever is in the batch."""

import dataclasses

import pytest
import torch
from PIL import Image

from llava.conversation import conv_templates
from llava.images import as_image
from llava.inference.answer import stream_answer
from llava.inference.batch import Dialog, Reader, answer_all, generate_batch, same
from llava.inference.decoder import Decoder
from llava.inference.model_inputs import encode_images, image_length
from llava.inference.prompt import encode_prompt, stop_strings
from llava.inference.sampling import SamplingParams
from llava.inference.streaming import TextStream
from llava.utils import UserError

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
SIZES = [(90, 60), (40, 70), (64, 64), (200, 30), (30, 200)]


def sample_images(count):
    return [
        Image.effect_noise(SIZES[index % len(SIZES)], 40 + 20 * index).convert("RGB")
        for index in range(count)
    ]


def dialog_of(template, question, images=(), turns=()):
    """An open dialog: earlier (question, answer) turns, then a question."""
    conversation = conv_templates[template].copy()
    for asked, answered in turns:
        conversation.append_message(conversation.roles[0], asked)
        conversation.append_message(conversation.roles[1], answered)
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    return Dialog(conversation, images)


def mixed_dialogs(template, count):
    """Text only, one image, several images, long and short questions, several turns, a shared image."""
    shared, *others = sample_images(6)
    kinds = [
        dialog_of(template, "<image>\nWhat is this?", [shared]),
        dialog_of(template, "Hello"),
        dialog_of(template, "Compare <image> with <image> in detail, please.", others[:2]),
        dialog_of(template, "Tell me about the sea. " * 6),
        dialog_of(template, "<image>\nAnd its colour?", [shared]),
        dialog_of(template, "Go on", [others[2]], turns=[("<image>\nWhat is this?", "A gradient.")]),
        dialog_of(template, "<image>\n<image>\n<image>\nWhich is largest?", others[2:5]),
        dialog_of(template, "Why?", turns=[("Hello", "Hi."), ("Who are you?", "A model.")]),
    ]
    return [kinds[index % len(kinds)] for index in range(count)]


def one_by_one(loaded, dialogs, params=GREEDY):
    """What a decoder of its own gives for each dialog: (text, why it ended, ids)."""
    found = []
    for dialog in dialogs:
        ids = encode_prompt(loaded.tokenizer, dialog.conversation, len(dialog.images))
        stream = TextStream(loaded.tokenizer, stop_strings(dialog.conversation) + params.stop)
        decoder = Decoder(loaded.model, loaded.image_processor)
        pieces = stream_answer(decoder, loaded.tokenizer, ids, dialog.images, params, stream)
        try:
            while True:
                next(pieces)
        except StopIteration as end:
            found.append((stream.text, end.value, tuple(stream.ids)))
    return found


def batched(loaded, dialogs, params=GREEDY, **settings):
    answers = generate_batch(
        loaded.tokenizer, loaded.model, loaded.image_processor, dialogs, params, **settings
    )
    return [dataclasses.astuple(one) for one in answers]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32])
def test_a_batch_gives_the_answers_of_one_by_one(family, batch_size):
    loaded, template = family
    dialogs = mixed_dialogs(template, 17 if batch_size < 32 else 34)
    expected = one_by_one(loaded, dialogs[:8])
    assert len({ids for *_, ids in expected}) > 3  # the dialogs tell the model apart
    found = batched(loaded, dialogs, batch_size=batch_size)
    assert found == [expected[index % 8] for index in range(len(dialogs))]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.9, max_new_tokens=16, seed=3),
        SamplingParams(temperature=1.1, top_p=0.8, top_k=30, max_new_tokens=16, seed=5),
        SamplingParams(temperature=0, num_beams=2, max_new_tokens=6),
    ],
    ids=["sampled", "top-p", "beams"],
)
def test_sampled_rows_and_beams_are_those_of_one_by_one(llama, params):
    dialogs = mixed_dialogs("llava_v1", 5)
    assert batched(llama, dialogs, params, batch_size=3) == one_by_one(llama, dialogs, params)


def test_rows_that_end_early_leave_the_others_alone(family):
    loaded, template = family
    dialogs = mixed_dialogs(template, 8)
    whole = one_by_one(loaded, dialogs)
    stops = sorted({text[3:5] for text, *_ in whole[:4] if len(text) > 5})  # end some rows, at other steps
    params = dataclasses.replace(GREEDY, stop=tuple(stops))
    expected = one_by_one(loaded, dialogs, params)
    assert len({len(ids) for *_, ids in expected}) > 1
    assert "stop" in {reason for _, reason, _ in expected}
    assert batched(loaded, dialogs, params) == expected


def test_end_tokens_end_their_row(llama, monkeypatch):
    dialogs = mixed_dialogs("llava_v1", 6)
    ids = [ids for *_, ids in one_by_one(llama, dialogs)]
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [2, ids[0][2], ids[1][4]])
    expected = one_by_one(llama, dialogs)
    assert [reason for _, reason, _ in expected[:2]] == ["stop", "stop"]
    assert batched(llama, dialogs) == expected


def test_the_context_ends_a_row_alone(llama, monkeypatch):
    dialogs = [
        dialog_of("llava_v1", text) for text in ("Hello", "Tell me about the sea. " * 9, "Why?", "How?")
    ]
    longest = len(encode_prompt(llama.tokenizer, dialogs[1].conversation, 0))
    monkeypatch.setattr(llama.model.config, "max_position_embeddings", longest + 5)
    expected = one_by_one(llama, dialogs)
    assert [reason for _, reason, _ in expected] == ["length", "context", "length", "length"]
    assert len(expected[1][2]) == 5
    assert batched(llama, dialogs) == expected


def test_the_tower_sees_each_image_of_a_bucket_once(llama):
    calls = []
    handle = llama.model.get_vision_tower().register_forward_pre_hook(
        lambda _, args: calls.append(len(args[0]))
    )
    dialogs = [dialog_of("llava_v1", "<image>\nWhat is this?", [one]) for one in sample_images(3)]
    try:
        batched(llama, dialogs * 2, batch_size=6)
    finally:
        handle.remove()
    assert sum(calls) == 3


def test_answers_come_with_their_index_as_they_end(llama):
    dialogs = mixed_dialogs("llava_v1", 5)
    seen = {}
    answers = generate_batch(
        llama.tokenizer,
        llama.model,
        llama.image_processor,
        dialogs,
        GREEDY,
        batch_size=2,
        on_answer=seen.__setitem__,
    )
    assert [seen[index] for index in range(5)] == answers
    assert all(1 <= len(one.ids) <= 12 for one in answers)


def test_no_dialogs_no_answers(llama):
    assert batched(llama, []) == []


def test_image_lengths_are_those_of_the_model(family):
    loaded, _ = family
    for size in SIZES:
        (features,) = encode_images(loaded.model, loaded.image_processor, [Image.new("RGB", size)])
        assert image_length(loaded.model, size) == len(features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda one: dataclasses.replace(one, images=[]),
            r"dialog 1: the prompt has 1 image token.* 0 image",
        ),
        (
            lambda one: one.conversation.messages[-1].__setitem__(1, "Yes"),
            "dialog 1: its last message is not",
        ),
        (
            lambda one: one.conversation.messages[-2].__setitem__(1, "<image> " + "word " * 3000),
            r"dialog 1: the prompt takes at least \d+ positions",
        ),
    ],
    ids=["images", "answered", "long"],
)
def test_a_dialog_that_cannot_be_asked_is_named_before_anything_runs(llama, change, message):
    dialogs = [dialog_of("llava_v1", "<image>\nWhat is this?", [one]) for one in sample_images(3)]
    dialogs[1] = change(dialogs[1]) or dialogs[1]
    passes = []
    handle = llama.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        with pytest.raises(UserError, match=message):
            batched(llama, dialogs)
    finally:
        handle.remove()
    assert not passes


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "8"])
def test_batch_sizes_are_checked(llama, batch_size):
    with pytest.raises(UserError, match="batch_size is .*expected a whole number of at least 1"):
        batched(llama, [], batch_size=batch_size)


def test_logits_that_are_no_numbers_are_told(llama, monkeypatch):
    def spoil(module, args, output):
        output.logits[0] = float("nan")
        return output

    handle = llama.model.register_forward_hook(spoil)
    try:
        with pytest.raises(UserError, match="not a number"):
            batched(llama, mixed_dialogs("llava_v1", 2))
    finally:
        handle.remove()


def test_a_text_model_answers_batches(llama, checkpoints):
    dialogs = [dialog_of("llava_v1", text) for text in ("Hello", "Tell me a long story", "Why?")]
    assert len(batched(llama, dialogs, batch_size=3)) == 3
    with pytest.raises(UserError, match="dialog 0: it has images, but this model has no vision tower"):
        generate_batch(
            llama.tokenizer,
            llama.model,
            None,
            [dialog_of("llava_v1", "<image>\nWhat?", sample_images(1))],
            GREEDY,
        )
    assert torch.is_grad_enabled()


def files_of(tmp_path, count):
    """Dialogs about image files, all of one size."""
    dialogs = []
    for index in range(count):
        Image.effect_noise((60, 60), 10 + index).convert("RGB").save(tmp_path / f"{index}.png")
        dialogs.append(dialog_of("llava_v1", "<image>\nWhat is this?", [tmp_path / f"{index}.png"]))
    return dialogs


def test_both_call_forms_are_taken(llama):
    dialogs = mixed_dialogs("llava_v1", 3)
    expected = generate_batch(llama.tokenizer, llama.model, llama.image_processor, dialogs, GREEDY)
    assert generate_batch(llama, dialogs, GREEDY) == expected
    assert generate_batch(llama, dialogs, params=GREEDY) == expected
    assert generate_batch(tuple(llama), dialogs, GREEDY) == expected
    with pytest.raises(TypeError, match="expected a LoadedModel"):
        generate_batch(llama.tokenizer, llama.model, llama.image_processor)


def test_images_are_opened_when_their_turn_comes(llama, tmp_path, monkeypatch):
    opened, answered = [], []

    def open_one(source):
        opened.append(source)
        assert len(opened) - len(answered) <= 4
        return as_image(source)

    monkeypatch.setattr("llava.inference.model.as_item", open_one)
    generate_batch(
        llama, files_of(tmp_path, 12), GREEDY, batch_size=2, on_answer=lambda *one: answered.append(one)
    )
    assert len(opened) == len(answered) == 12


def test_an_iterable_is_read_piece_by_piece(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("llava.inference.batch.READ_AHEAD", 2)
    dialogs = files_of(tmp_path, 9)
    read, answered = [], []

    def one_after_another():
        for one in dialogs:
            read.append(one)
            assert len(read) - len(answered) <= 4
            yield one

    found = generate_batch(
        llama, one_after_another(), GREEDY, batch_size=2, on_answer=lambda *one: answered.append(one)
    )
    assert found == generate_batch(llama, dialogs, GREEDY)


def test_a_process_opens_only_its_own_share(llama, tmp_path):
    dialogs = files_of(tmp_path, 6)
    for index in (0, 2, 4):
        (tmp_path / f"{index}.png").unlink()
    found = answer_all(Reader(llama, GREEDY, same), dialogs, start=1, step=2)
    assert sorted(found) == [1, 3, 5]


def test_a_damaged_image_is_named_in_its_turn(llama, tmp_path):
    dialogs = files_of(tmp_path, 3)
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"dialog 1: the image .*1.png' is damaged"):
        generate_batch(llama, dialogs, GREEDY)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match=r"dialog 1: the image .*1.png' cannot be read"):
        generate_batch(llama, dialogs, GREEDY)
