"""Image tokens in a question, stop strings of the templates, and which template is used."""

import logging
from types import SimpleNamespace

import pytest

from llava.conversation import conv_templates
from llava.inference.prompt import (
    pick_conv_mode,
    place_image_tokens,
    read_question,
    stop_strings,
    with_system,
)
from llava.utils import UserError

WRAPPED = "<im_start><image><im_end>"


@pytest.mark.parametrize(
    ("text", "n_images", "start_end", "expected"),
    [
        ("What?", 0, False, "What?"),
        ("What?", 1, False, "<image>\nWhat?"),
        ("What?", 1, True, f"{WRAPPED}\nWhat?"),
        ("What?", 2, False, "<image>\n<image>\nWhat?"),
        ("<image-placeholder> and <image-placeholder>?", 2, False, "<image> and <image>?"),
        ("<image-placeholder> and <image>?", 2, True, f"{WRAPPED} and {WRAPPED}?"),
        (f"{WRAPPED}\nWhat?", 1, True, f"{WRAPPED}\nWhat?"),
        (f"{WRAPPED}\nWhat?", 1, False, "<image>\nWhat?"),
    ],
)
def test_image_tokens(text, n_images, start_end, expected):
    assert place_image_tokens(text, n_images, start_end=start_end) == expected


def test_wrong_number_of_image_tokens_names_both_numbers():
    with pytest.raises(UserError, match="names 1 image.* 3 came with it"):
        place_image_tokens("<image>?", 3, start_end=False)


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        ("llava_v0", ("###",)),
        ("llava_v1", ("</s>",)),
        ("mpt", ("<|im_end|>",)),
        ("chatml_direct", ("<|im_end|>",)),
        ("llava_llama_2", ("</s>",)),
        ("mistral_instruct", ("</s>",)),
        ("plain", ("\n",)),
    ],
)
def test_stop_strings(template, stop):
    assert stop_strings(conv_templates[template]) == stop


def test_no_template_has_an_empty_stop_string():
    assert all("" not in stop_strings(one) for one in conv_templates.values())


def test_template_is_inferred_with_its_reason():
    key, reason = pick_conv_mode(None, "any-name", SimpleNamespace(model_type="llava_mpt"))
    assert key == "mpt" and "llava_mpt" in reason


def test_given_template_wins_and_a_mismatch_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        key, _ = pick_conv_mode("llava_v0", "llava-v1.5-7b")
    assert key == "llava_v0"
    assert len(caplog.records) == 1
    assert "llava_v1" in caplog.text and "llava_v0" in caplog.text


def test_given_template_that_agrees_is_silent(caplog):
    with caplog.at_level(logging.WARNING):
        key, _ = pick_conv_mode("llava_v1", "llava-v1.5-7b")
    assert key == "llava_v1" and not caplog.records


def test_unknown_template_lists_the_known_ones():
    with pytest.raises(UserError, match="'nope'.*llava_v1.*mpt"):
        pick_conv_mode("nope", "llava-v1.5-7b")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\udcffb", "holds the byte 0xff, which is no UTF-8"), ("\ud83d", "half a character"), ("a\0b", "NUL")],
)
def test_texts_that_cannot_be_tokenized(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"the question {message}|the question holds .*{message}"):
        read_question(text, [], SimpleNamespace(), has_tower=False)
    with pytest.raises(UserError, match=f"system .*{message}"):
        with_system(conv_templates["llava_v1"], text)
