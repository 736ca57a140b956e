"""The same weights in transformers' own LLaVA and LLaVA-NeXT give the same logits, loss and tokens."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.model.multimodal.features import unpad_image

PLACEHOLDER = 3  # the id that stands for one image feature in transformers' input; no prompt here contains it


def twin(model: Any) -> Any:
    """Build transformers' LLaVA (NeXT if the model has image_newline) with the weights of ours."""
    fields = model.config.to_dict()
    base_type = fields.pop("model_type").removeprefix("llava_")
    is_next = hasattr(model.get_model(), "image_newline")
    config_class, model_class = (
        (LlavaNextConfig, LlavaNextForConditionalGeneration)
        if is_next
        else (LlavaConfig, LlavaForConditionalGeneration)
    )
    # transformers writes grid pinpoints as (height, width)
    arguments = {"image_grid_pinpoints": [[h, w] for w, h in tiny.PINPOINTS]} if is_next else {}
    config = config_class(
        vision_config=model.get_vision_tower().config,
        text_config=CONFIG_MAPPING[base_type](**fields),
        image_token_index=PLACEHOLDER,
        vision_feature_layer=model.config.mm_vision_select_layer,
        vision_feature_select_strategy="default",
        **arguments,
    )
    theirs = model_class(config).eval()
    names = {
        "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
        "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
        "model.image_newline": "model.image_newline",
        "lm_head.": "lm_head.",
        "model.": "model.language_model.",
    }
    weights = {}
    for name, value in model.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        weights[names[prefix] + name.removeprefix(prefix)] = value
    theirs.load_state_dict(weights)
    return theirs


def expand(ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Replace each image token of ids (1, T) by as many placeholders as the image has features."""
    lengths = list(lengths)
    spread = [[PLACEHOLDER] * lengths.pop(0) if i == tiny.IMAGE else [i] for i in ids[0].tolist()]
    assert not lengths
    return torch.tensor([sum(spread, [])])


def text(ids: torch.Tensor) -> torch.Tensor:
    """Move text ids off the placeholder."""
    return torch.where(ids == PLACEHOLDER, PLACEHOLDER + 1, ids)


LLAMA_LIKE = pytest.mark.parametrize(
    "family", ["llama", "mistral"]
)  # transformers cannot put MPT into its LLaVA


@LLAMA_LIKE
@pytest.mark.parametrize("layer", [-2, -1, 2])
def test_v15_logits_and_loss(build, family, layer):
    model = build(family, mm_vision_select_layer=layer)
    ids = text(tiny.prompt(4, "image", 5, "image", 2))
    images = tiny.pixels(2, 3, 28, 28)
    full = expand(ids, [tiny.PATCHES] * 2)
    labels = full.masked_fill(full == PLACEHOLDER, -100)
    with torch.no_grad():
        ours = model(input_ids=ids, labels=ids.masked_fill(ids == tiny.IMAGE, -100), images=images)
        theirs = twin(model)(input_ids=full, labels=labels, pixel_values=images)
        other = model(input_ids=ids, images=images.flip(-1))
    assert ours.logits.shape == theirs.logits.shape
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-6, rtol=1e-6)
    assert (ours.logits - other.logits).abs().max() > 0.1  # the images matter


@LLAMA_LIKE
def test_v15_greedy_tokens(build, family):
    model = build(family)
    ids = text(tiny.prompt(4, "image", 5))
    images = tiny.pixels()
    full = expand(ids, [tiny.PATCHES])
    ours = model.generate(ids, images=images, max_new_tokens=12, do_sample=False)
    theirs = twin(model).generate(full, pixel_values=images, max_new_tokens=12, do_sample=False)
    assert torch.equal(ours, theirs[:, full.shape[1] :])


# (width, height); 100 x 30 and 31 x 100 leave an odd surplus, 84 x 28 none, 20 x 20 is enlarged
SIZES = [(56, 28), (100, 30), (31, 100), (84, 28), (20, 20), (53, 41)]


@LLAMA_LIKE
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_v16_logits(build, family, size):
    from llava.mm_utils import get_anyres_image_grid_shape

    model = build(family, mm_patch_merge_type="spatial_unpad", image_aspect_ratio="anyres")
    columns, rows = get_anyres_image_grid_shape(size, tiny.PINPOINTS, tiny.IMAGE_SIZE)
    ids = text(tiny.prompt(4, "image", 5))
    images = tiny.pixels(1, 1 + columns * rows, 3, 28, 28)
    with torch.no_grad():
        ours = model(input_ids=ids, images=images, image_sizes=[size]).logits
        full = expand(ids, [ours.shape[1] - 9])
        sizes = torch.tensor([[size[1], size[0]]])
        theirs = twin(model)(input_ids=full, pixel_values=images, image_sizes=sizes).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_unpad_equals_transformers_for_ordinary_sizes():
    from transformers.models.llava_next.modeling_llava_next import unpad_image as theirs

    for grid in ((4, 8), (8, 8), (12, 4), (48, 24)):
        plane = torch.arange(grid[0] * grid[1]).view(1, *grid)
        for width in range(1, 48):
            for height in range(1, 48):
                assert torch.equal(unpad_image(plane, (width, height)), theirs(plane, (height, width)))


@pytest.mark.parametrize(("width", "height", "ours", "theirs"), [(196, 49, 0, 2), (392, 294, 2, 4)])
def test_unpad_keeps_the_rounding_of_training_where_transformers_differs(width, height, ours, theirs):
    """49 * (4 / 196) is 0.9999999999999999: LLaVA 1.6 was trained with the 0 that int() makes of it, while
    transformers rounds to 7 digits first. Only exact multiples are concerned: 142 of the sizes up to 1500
    pixels wide, on maps 4 to 72 patches wide."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image as theirs_unpad

    plane = torch.zeros(1, 4, 4)
    assert unpad_image(plane, (width, height)).shape[1] == ours
    assert theirs_unpad(plane, (height, width)).shape[1] == theirs
