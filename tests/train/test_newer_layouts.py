"""Folders as newer LLaVAs were published: they load, chat, batch, train, and come back as they were saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import CLIP, LAYOUTS, SIGLIP, VIDEOS, known_towers, write_layout
from recorded_training import run_train, sample_image

import llava
from llava.conversation import conv_templates
from llava.inference.model_inputs import encode_images, image_length
from llava.model.checkpoints.files import load_weights
from llava.model.multimodal.media import arranged
from llava.model.tools.inspection import inspect_checkpoint
from llava.utils import UserError
from llava.video import video_of_images

every_layout = pytest.mark.parametrize("name", LAYOUTS)
SETTINGS = {"temperature": 0, "max_new_tokens": 6}


@pytest.fixture(scope="module", autouse=True)
def towers() -> Iterator[None]:
    with known_towers():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, towers: None) -> Callable[[str], Path]:
    """Write the folder of a layout once: `folder("next-qwen")`."""
    root = tmp_path_factory.mktemp("layouts")
    return cache(lambda name: write_layout(name, root / name))


@pytest.fixture(scope="module")
def assistant(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return cache(lambda name: llava.load(folder(name), device="cpu", dtype="float32"))


def asked(name: str) -> list[tuple[str, list[Any]]]:
    """Questions about an image, a wide one, several, none, and about a video where the model takes one."""
    images = [sample_image(60, 40, 1), sample_image(120, 30, 2), sample_image(28, 28, 3)]
    questions: list[tuple[str, list[Any]]] = [("What?", images[:1]), ("And this?", [images[1]]), ("Hi.", [])]
    questions.append(("Which is first?", images))
    if name in VIDEOS:
        questions.append(("What happens?", [video_of_images(images[:2])]))
        questions.append(("And beside it?", [images[2], video_of_images(images)]))
    return questions


def speaks(assistant: Any, key: str) -> bool:
    """Tell whether a model is asked by the template of a key."""
    found, wanted = assistant.template, conv_templates[key]
    return (found.system, found.roles, found.sep) == (wanted.system, wanted.roles, wanted.sep)


@every_layout
def test_it_is_read_as_it_was_written(name: str, folder: Any, assistant: Any) -> None:
    layout, model = LAYOUTS[name], assistant(name).model
    report = inspect_checkpoint(str(folder(name)))
    assert report.can_chat, report.problems
    assert speaks(assistant(name), layout.template)
    tower = model.get_vision_tower()
    assert len(tower.vision_tower.vision_model.encoder.layers) == 3 - layout.short
    stored, held = load_weights(folder(name)), model.state_dict()
    for key, value in stored.items():
        assert torch.equal(held[key][: len(value)], value[: len(held[key])]), key


@every_layout
def test_batches_answer_as_chat_does(name: str, assistant: Any) -> None:
    model = assistant(name)
    questions = asked(name)
    answers = [model.chat(text, items, **SETTINGS) for text, items in questions]
    assert model.batch(questions, batch_size=4, **SETTINGS) == answers
    for _, items in questions:
        shown = arranged(items, model.model.config)
        features = encode_images(model.model, model.image_processor, shown)
        assert [len(one) for one in features] == [image_length(model.model, one) for one in shown]


RECIPES = {
    "full": "--mm_tunable_parts mm_vision_tower,mm_mlp_adapter,mm_language_model --learning_rate 1e-3",
    "lora": "--lora_enable True --lora_r 4 --learning_rate 1e-3",
}
COMMON = (
    "--per_device_train_batch_size 2 --max_steps 2 --logging_steps 1 --report_to none --save_strategy no "
    "--model_max_length 2000 --lazy_preprocess True --disable_tqdm True --frames_upbound 3"
)


def records(name: str, folder: Path) -> Path:
    for index in range(3):
        sample_image(60, 40, index).save(folder / f"{index}.png")
    answer = {"from": "gpt", "value": "a cat"}
    rows: list[dict[str, Any]] = [
        {"image": "0.png", "conversations": [{"from": "human", "value": "<image>\nabc"}, answer]},
        {
            "image": ["1.png", "2.png"],
            "conversations": [{"from": "human", "value": "<image><image> a"}, answer],
        },
    ]
    if name in VIDEOS:
        frames = ["0.png", "1.png", "2.png", "0.png"]
        rows[1] = {"video": frames, "conversations": [{"from": "human", "value": "<video>\nabc"}, answer]}
    (folder / "d.json").write_text(json.dumps(rows))
    return folder / "d.json"


RUNS = [(name, recipe) for name in LAYOUTS for recipe in RECIPES]
FAST = ("onevision-7b", "full")


@pytest.mark.parametrize(
    ("name", "recipe"),
    [one if one == FAST else pytest.param(*one, marks=pytest.mark.slow) for one in RUNS],
)
def test_it_trains_and_comes_back(name: str, recipe: str, folder: Any, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    out = tmp_path / f"llava-{recipe}"
    argv = [
        *COMMON.split(), *RECIPES[recipe].split(), "--model_name_or_path", str(folder(name)),
        "--vision_tower", layout.fields["mm_vision_tower"], "--data_path",
        str(records(name, tmp_path)), "--image_folder", str(tmp_path), "--output_dir", str(out),
    ]  # fmt: skip
    if layout.llm == "llama":  # the reference's default is for all Llamas
        argv += ["--version", layout.template]
    run = run_train(argv, order=[0, 1] * 2)
    assert len(run.loss) == 2 and run.loss[1] < run.loss[0]
    model = run.trainer.model
    model = (model.merge_and_unload() if recipe == "lora" else model).float().eval()
    base = str(folder(name)) if recipe == "lora" else None
    again = llava.load(out, base, device="cpu", dtype="float32")
    assert speaks(again, layout.template)
    ids = torch.tensor([[5, 6, -200, 7, 8, 9]])
    pixels, sizes = torch.randn(1, 3, 3, 28, 28), [(56, 28)]
    with torch.no_grad():
        mine = model(input_ids=ids, images=pixels, image_sizes=sizes).logits
        read = again.model(input_ids=ids, images=pixels, image_sizes=sizes).logits
    torch.testing.assert_close(read[..., : mine.shape[-1]], mine[..., : read.shape[-1]], rtol=1e-4, atol=1e-5)
    content = json.loads((out / "config.json").read_text())
    for field in ("image_aspect_ratio", "mm_patch_merge_type", "mm_vision_tower", "mm_newline_position"):
        assert content.get(field) == layout.fields.get(field), field
    if recipe == "full":
        stored = {one for one in load_weights(out) if "vision_tower" in one}
        assert stored == {one for one in load_weights(folder(name)) if "vision_tower" in one}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image_grid_pinpoints", "(1x1),...,(axb)", "image_grid_pinpoints is '.1x1.,...,.axb.'; expected"),
        ("image_grid_pinpoints", [[30, 28]], "multiples? of 28"),
        ("image_aspect_ratio", "anyres_max", "image_aspect_ratio is 'anyres_max'; known values"),
        ("mm_patch_merge_type", "spatial_pad", "mm_patch_merge_type is 'spatial_pad'; expected"),
        ("mm_newline_position", "row", "mm_newline_position is 'row'; known values: grid"),
        ("mm_resampler_type", "qformer", "mm_resampler_type is 'qformer'; known values: spatial_pool"),
        ("add_faster_video", True, "add_faster_video is set"),
        ("mm_spatial_pool_stride", "2", "mm_spatial_pool_stride is '2'; expected a whole number"),
    ],
)
def test_a_setting_that_is_not_understood_is_one_sentence(
    field: str, value: Any, said: str, folder: Any, tmp_path: Path
) -> None:
    """Of a folder that is loaded, and that training starts from."""
    source = tmp_path / "llava-ov"
    shutil.copytree(folder("onevision-0.5b"), source)
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**content, field: value}))
    data = records("interleave", tmp_path)
    argv = ["--model_name_or_path", str(source), "--vision_tower", SIGLIP, "--data_path", str(data)]
    argv += ["--image_folder", str(tmp_path)]
    for start in (
        lambda: llava.load(source, device="cpu"),
        lambda: run_train([*argv, "--output_dir", str(tmp_path / "out")]),
    ):
        with pytest.raises(UserError, match=said) as caught:
            start()
        assert "\n" not in str(caught.value)


def test_names_of_towers_are_those_whose_configs_are_known() -> None:
    assert {layout.fields["mm_vision_tower"] for layout in LAYOUTS.values()} == {SIGLIP, CLIP}
