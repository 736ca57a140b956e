"""Chat and batches with videos, and with several images where the model was trained on squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import llava
from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.model_inputs import image_length
from llava.model.multimodal.media import arranged, process_media
from llava.video import Video, video_of_images

SIZES = [(80, 40), (30, 70), (56, 56)]


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    values = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def assistant(checkpoints: Path) -> Any:
    """A model of tiles with a cap, which shows several images as squares."""
    model = llava.load(checkpoints / "llava-tiny-v1.6", device="cpu", dtype="float32")
    model.model.config.image_aspect_ratio = "anyres_max_2"
    model.model.config.tokenizer_model_max_length = 2000
    model.model.config.max_position_embeddings = 4000
    return model


def reference(assistant: Any, question: str, items: list[Any]) -> str:
    """The answer of the model's own generate."""
    dialog = assistant._dialog((question, items))
    ids = assistant.loaded.read(dialog).ids
    assert ids.count(IMAGE_TOKEN_INDEX) == len(items)
    pixels, modalities = process_media(
        arranged(items, assistant.model.config), assistant.image_processor, assistant.model.config
    )
    out = assistant.model.generate(
        torch.tensor([ids]), images=pixels, image_sizes=[one.size for one in items], modalities=modalities,
        max_new_tokens=8, do_sample=False,
    )  # fmt: skip
    return assistant.tokenizer.decode(out[0], skip_special_tokens=True).strip()


def asked() -> dict[str, list[Any]]:
    video = video_of_images([noise(seed, (40, 30)) for seed in range(3)])
    return {
        "video": [video],
        "image": [noise(5, (90, 40))],
        "images": [noise(seed, size) for seed, size in enumerate(SIZES)],
        "both": [noise(7, (50, 60)), video],
    }


def test_chat_batch_and_generate_agree(assistant: Any) -> None:
    questions = [("what is this?", items) for items in asked().values()]
    expected = [reference(assistant, *one) for one in questions]
    settings = {"temperature": 0, "max_new_tokens": 8}
    assert [assistant.chat(text, items, **settings) for text, items in questions] == expected
    assert assistant.batch(questions, batch_size=4, **settings) == expected
    assert len(set(expected)) > 1


def test_lengths_are_counted_before_the_tower_runs(assistant: Any) -> None:
    model = assistant.model
    for items in asked().values():
        shown = arranged(items, model.config)
        pixels, modalities = process_media(shown, assistant.image_processor, model.config)
        with torch.no_grad():
            features = model.image_features(pixels, [one.size for one in items], modalities)
        assert [len(one) for one in features] == [image_length(model, one) for one in shown]


def test_another_image_makes_squares_of_those_before(assistant: Any) -> None:
    session = assistant.session()
    settings = {"temperature": 0, "max_new_tokens": 4}
    session.ask("one?", [noise(1, (80, 40))], **settings)
    session.ask("and this?", [noise(2, (30, 70))], **settings)
    lengths = [len(one) for one in session.decoder._features.values()]
    side = assistant.model.get_vision_tower().num_patches_per_side
    assert lengths == [side**2 + 1] * 2


def test_a_video_without_frames_is_refused(assistant: Any) -> None:
    with pytest.raises(ValueError, match="no frames"):
        assistant.chat("what?", [Video(())])


def test_training_shows_several_images_as_chat_does(assistant: Any, tmp_path: Path) -> None:
    from llava.train.data.samples import SampleMaker
    from llava.train.plan import DataSettings

    config = assistant.model.config
    images = asked()["images"]
    settings = DataSettings(
        is_multimodal=True, image_processor=assistant.image_processor, pads_several=True,
        image_aspect_ratio=config.image_aspect_ratio, image_grid_pinpoints=config.image_grid_pinpoints,
    )  # fmt: skip
    maker = SampleMaker(assistant.tokenizer, settings, assistant.template)
    for count in (1, 3):
        turns = [{"from": "human", "value": "<image>\n" * count + "what?"}, {"from": "gpt", "value": "this."}]
        names = [f"{index}.png" for index in range(count)]
        sample = maker.make({"image": names, "conversations": turns}, images=images[:count])
        shown, _ = process_media(arranged(images[:count], config), assistant.image_processor, config)
        found = sample["image"] if count > 1 else [sample["image"]]
        assert all(torch.equal(one, other) for one, other in zip(found, shown, strict=True))
