"""What generate() takes: prompts of one or two dimensions, Pillow images, the pipeline of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import pipeline

from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.utils import UserError

GREEDY = {"max_new_tokens": 6, "do_sample": False}
FOLDERS = {"llama": "llava-tiny-v1.5", "mistral": "llava-tiny-v1.6-mistral", "mpt": "llava-tiny-mpt"}
TILED = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"}


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


# ---------------------------------------------------------------------------------------------- token ids


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_one_prompt_without_its_batch_dimension(build: Any, family: str, image: bool) -> None:
    model = build(family)
    ids = tiny.prompt(3, "image", 4) if image else tiny.prompt(6)
    images = {"images": tiny.pixels()} if image else {}
    expected = model.generate(ids, **images, **GREEDY)
    mask = torch.ones_like(ids)
    for row, beside in (
        (ids[0], {}),
        (ids[0].tolist(), {}),
        (ids.tolist(), {}),
        (ids[0], mask[0]),
        (ids, mask),
    ):
        given = {"attention_mask": beside} if isinstance(beside, torch.Tensor) else {}
        assert torch.equal(model.generate(row, **given, **images, **GREEDY), expected)
    assert torch.equal(
        model.generate(input_ids=ids[0], **images, **GREEDY)[:, -expected.shape[1] :], expected
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "no token ids"),
        ("What is this?", "got a str as inputs; expected token ids, make them with tokenizer_image_token"),
        ({"input_ids": torch.ones(1, 3)}, "got a dict as inputs.* pass its input_ids"),
        (["What", "is"], "a list that is no batch of token ids"),
        ([[3, 4], [5]], "rows of one length"),
        (torch.rand(1, 4), "dtype float32"),
        (torch.ones(1, 4, dtype=torch.bool), "dtype bool"),
        (torch.ones(1, 2, 3, dtype=torch.long), r"shape \(1, 2, 3\)"),
        (torch.tensor(5), r"shape \(\)"),
        (torch.ones(1, 0, dtype=torch.long), r"shape \(1, 0\)"),
        ([], "dtype float32|shape"),
        (torch.tensor([[5, 96]]), "token id 96; expected 0 to 95"),
        (torch.tensor([[5, -7]]), "token id -7"),
    ],
)
def test_what_is_no_prompt_is_one_sentence(build: Any, inputs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build("llama").generate(inputs, **GREEDY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["attention_mask", "position_ids"])
def test_what_stands_beside_the_ids_has_their_shape(build: Any, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} of shape \(1, 4\); expected .* \(1, 6\)"):
        build("llama").generate(tiny.prompt(6), **{name: torch.ones(1, 4, dtype=torch.long)}, **GREEDY)


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    "fields", [{}, TILED, {"image_aspect_ratio": "square"}], ids=["pad", "anyres", "square"]
)
def test_pillow_images_are_processed_as_training_does(build: Any, fields: dict[str, Any]) -> None:
    model = build("llama", **fields)
    images = [photo(50, 28), photo(20, 44, seed=1)]
    processor = model.get_vision_tower().image_processor
    values = process_images(images, processor, model.config)
    sizes = [image.size for image in images]
    ids = tiny.prompt(2, "image", 3, "image", 2)
    expected = model.generate(ids, images=values, image_sizes=sizes, **GREEDY)
    assert torch.equal(model.generate(ids, images=images, **GREEDY), expected)
    assert torch.equal(model.generate(ids[0], images=tuple(images), image_sizes=sizes, **GREEDY), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_one_pillow_image_of_any_mode(build: Any, mode: str) -> None:
    model, image = build("llama"), photo(40, 30, mode)
    ids = tiny.prompt(3, "image", 4)
    expected = model.generate(ids, images=[image.convert("RGB")], **GREEDY)
    assert torch.equal(model.generate(ids, images=image, **GREEDY), expected)


def test_one_tensor_without_its_batch_dimension(build: Any) -> None:
    model, ids, images = build("llama"), tiny.prompt(3, "image", 4), tiny.pixels()
    expected = model.generate(ids, images=images, **GREEDY)
    assert torch.equal(model.generate(ids, images=images[0], **GREEDY), expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("photo.jpg", "got a str as images; expected Pillow images"),
        (["photo.jpg"], r"got a str as images\[0\]"),
        ([photo(9, 9), tiny.pixels()[0]], r"got a Tensor as images\[1\]; .* all of one kind"),
        ([tiny.pixels()[0], photo(9, 9)], r"got a Image as images\[1\]"),
        ([[photo(9, 9)]], r"got a list as images\[0\]"),
        (np.zeros((28, 28, 3)), "got a ndarray as images"),
        (torch.zeros(28, 28, 3), r"images of shape \(28, 28, 3\)"),
        (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), "dtype uint8"),
        ([torch.zeros(28, 28)], r"images\[0\] of shape \(28, 28\)"),
    ],
)
def test_what_is_no_image_is_one_sentence(build: Any, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build("llama").generate(tiny.prompt(3, "image", 4), images=images, **GREEDY)
    assert "\n" not in str(caught.value)


def test_images_and_places_that_differ_in_number(build: Any) -> None:
    with pytest.raises(UserError, match="image"):
        build("llama").generate(tiny.prompt(3, "image", 4), images=[photo(9, 9), photo(9, 9)], **GREEDY)


def test_pillow_images_for_a_model_without_a_tower(build: Any) -> None:
    model = tiny.llava_class("llama")(tiny.llava_config("llama", "", mm_vision_tower=None))
    with pytest.raises(UserError, match="no vision tower"):
        model.generate(tiny.prompt(3), images=photo(9, 9), **GREEDY)


# ------------------------------------------------------------------------------------- transformers' pipeline


def test_text_by_transformers_word_comes_back_with_the_prompt(build: Any, family: str) -> None:
    model, ids = build(family), tiny.prompt(6)
    new = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(input_ids=ids, **GREEDY), torch.cat((ids, new), 1))


def test_padding_of_rows_by_transformers_word_moves_left(build: Any) -> None:
    model = build("llama", eos_token_id=None)
    rows = [tiny.prompt(6), tiny.prompt(3, seed=4)]
    padding = torch.zeros(1, 3, dtype=torch.long)
    ids = torch.cat((rows[0], torch.cat((rows[1], padding), 1)))
    mask = torch.cat((torch.ones_like(rows[0]), torch.cat((torch.ones_like(rows[1]), padding), 1)))
    got = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=None, **GREEDY)
    for row, own in zip(got, rows, strict=True):
        assert torch.equal(row[6:], model.generate(own, eos_token_id=None, **GREEDY)[0])
    assert got[1, :6].tolist() == [0, 0, 0, *rows[1][0].tolist()]


@pytest.mark.parametrize("key", FOLDERS)
def test_the_text_generation_pipeline(key: str, checkpoints: Path) -> None:
    tokenizer, model, _, _ = load_pretrained_model(
        str(checkpoints / FOLDERS[key]), None, key, device="cpu", dtype="float32"
    )
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = "What is in the image?"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    new = model.generate(ids, **GREEDY)
    answer = tokenizer.decode(new[0], skip_special_tokens=True)
    assert answer.strip()
    assert ask(prompt, **GREEDY) == [{"generated_text": prompt + answer}]
    assert ask(prompt, return_full_text=False, **GREEDY) == [{"generated_text": answer}]
    assert ask(prompt, return_tensors=True, **GREEDY)[0]["generated_token_ids"] == [
        *ids[0].tolist(),
        *new[0].tolist(),
    ]
    both = ask(
        [prompt, "A longer question: what is in the image?"], return_full_text=False, batch_size=1, **GREEDY
    )
    assert both[0] == [{"generated_text": answer}] and len(both) == 2
