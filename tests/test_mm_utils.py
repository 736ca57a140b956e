"""Images and prompts become the recorded values; generation stops where it should."""

import math
from types import SimpleNamespace

import pytest
import torch
from text_data import cases, check_image, check_pixels, clip_processor, make_image, tokenizer_folder

from llava import mm_utils
from llava.mm_utils import (
    ImageError,
    KeywordsStoppingCriteria,
    process_images,
    tokenizer_image_token,
)
from llava.model.tokenizer import load_tokenizer
from llava.utils import UserError

FILE = "mm_utils.json"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for kind in (
        "tiny_tokenizer",
        "tiny_tokenizer_legacy",
        "tiny_tokenizer_imtokens",
        "tiny_tokenizer_chatml",
    ):
        found[kind] = load_tokenizer(tokenizer_folder(root / kind, kind))
        found[kind].pad_token = found[kind].unk_token
    return found


# -------------------- recorded values


@pytest.mark.parametrize("case", cases(FILE, "tokenizer_image_token"))
def test_prompts_with_images_have_the_recorded_ids(case, tokenizers):
    given, expected = case["input"], case["expected"]
    options = {"image_token_index": given["index"]} if "index" in given else {}
    if "return_tensors" in given:
        options["return_tensors"] = given["return_tensors"]
    if "raises" in expected:
        with pytest.raises(UserError, match="return_tensors is"):
            tokenizer_image_token(given["prompt"], tokenizers[given["tokenizer"]], **options)
        return
    ids = tokenizer_image_token(given["prompt"], tokenizers[given["tokenizer"]], **options)
    if "tensor" in expected:
        assert (ids.tolist(), str(ids.dtype)) == (expected["tensor"], expected["dtype"])
    else:
        assert ids == expected["list"] and type(ids) is list


@pytest.mark.parametrize("case", cases(FILE, "best_resolution"))
def test_the_recorded_resolutions_are_chosen(case):
    pinpoints = [tuple(pair) for pair in case["input"]["pinpoints"]]
    for size, expected in zip(case["input"]["sizes"], case["expected"], strict=True):
        best = mm_utils.select_best_resolution(tuple(size), pinpoints)
        assert (None if best is None else list(best)) == expected


@pytest.mark.parametrize("case", cases(FILE, "grid_shape"))
def test_grid_shapes_are_the_recorded_ones(case):
    given = case["input"]
    for size, expected in zip(given["sizes"], case["expected"], strict=True):
        if not isinstance(expected, dict):
            shape = mm_utils.get_anyres_image_grid_shape(tuple(size), given["pinpoints"], given["patch"])
            assert list(shape) == expected


@pytest.mark.parametrize("case", cases(FILE, "resize_and_pad"))
def test_resized_images_are_the_recorded_ones(case):
    image = make_image(case["input"]["image"])
    check_image(mm_utils.resize_and_pad_image(image, tuple(case["input"]["target"])), case["expected"])


@pytest.mark.parametrize("case", cases(FILE, "divide_to_patches"))
def test_tiles_are_the_recorded_ones(case):
    tiles = mm_utils.divide_to_patches(make_image(case["input"]["image"]), case["input"]["patch"])
    for tile, expected in zip(tiles, case["expected"], strict=True):
        check_image(tile, expected)


@pytest.mark.parametrize("case", cases(FILE, "process_anyres"))
def test_anyres_pixels_are_the_recorded_ones(case):
    given = case["input"]
    image, processor = make_image(given["image"]), clip_processor(given["edge"])
    check_pixels(mm_utils.process_anyres_image(image, processor, given["pinpoints"]), case["expected"])


@pytest.mark.parametrize("case", cases(FILE, "process_images"))
def test_processed_images_are_the_recorded_ones(case):
    given, expected = case["input"], case["expected"]
    names = ("image_aspect_ratio", "image_grid_pinpoints")
    config = SimpleNamespace(**{name: given[name] for name in names if name in given})
    images, processor = [make_image(spec) for spec in given["images"]], clip_processor(given["edge"])
    if not images:
        with pytest.raises(ImageError, match="no images"):
            process_images(images, processor, config)
        return
    pixels = process_images(images, processor, config)
    if "stacked" in expected:
        check_pixels(pixels, expected["stacked"])
    elif "list" in expected:
        assert type(pixels) is list
        for got, want in zip(pixels, expected["list"], strict=True):
            check_pixels(got, want)
    else:
        assert pixels.shape == (1, 3, 56, 56)  # grey with padding: the reference fails


@pytest.mark.parametrize("case", cases(FILE, "model_name"))
def test_model_names_are_the_recorded_ones(case):
    name = mm_utils.get_model_name_from_path(case["input"]["path"])
    assert name == (case["expected"] if isinstance(case["expected"], str) else "checkpoint-5")


# -------------------- tiling and processing


def test_pinpoints_may_be_any_list_and_bad_ones_are_refused():
    for form in ([[28, 56], [56, 28]], ((28, 56), (56, 28)), "[(28, 56), [56, 28]]"):
        assert mm_utils.get_anyres_image_grid_shape((100, 40), form, 28) == (2, 1)
    for bad in ("__import__('os')", "[1, 2]", 5, "[[1, 2, 3]]", "[[28,"):
        with pytest.raises(UserError, match="image_grid_pinpoints is"):
            mm_utils.parse_grid_pinpoints(bad)
    with pytest.raises(UserError, match="empty"):
        mm_utils.parse_grid_pinpoints([])


def test_anyres_without_pinpoints_is_refused():
    with pytest.raises(UserError, match="image_grid_pinpoints"):
        process_images(
            [make_image({"w": 8, "h": 8})], clip_processor(28), SimpleNamespace(image_aspect_ratio="anyres")
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 4000)])
@pytest.mark.parametrize("rule", [None, "pad", "anyres"])
def test_extreme_shapes_are_processed_in_little_memory(size, rule):
    config = SimpleNamespace(image_aspect_ratio=rule, image_grid_pinpoints=[[336, 672], [672, 336]])
    pixels = process_images([make_image({"w": size[0], "h": size[1]})], clip_processor(336), config)
    assert pixels.shape[-3:] == (3, 336, 336)
    assert torch.isfinite(pixels).all()


def test_cutting_a_strip_hardly_changes_what_the_crop_shows(monkeypatch):
    image, processor = make_image({"w": 5, "h": 900, "seed": 3}), clip_processor(56)
    whole = process_images([image], processor, SimpleNamespace())
    monkeypatch.setattr(mm_utils, "_MAX_RESIZED_PIXELS", 0)
    assert (process_images([image], processor, SimpleNamespace()) - whole).abs().mean() < 0.05


def test_a_text_about_an_end_of_text_token_keeps_all_its_ids():
    class NeoxLike:
        """Adds no start token, but has one that a text may begin with."""

        bos_token_id = 0

        def __call__(self, text):
            return SimpleNamespace(input_ids=[0 if char == "|" else ord(char) for char in text])

    assert tokenizer_image_token("|a<image>bc<image>|d", NeoxLike()) == [0, 97, -200, 98, 99, -200, 100]


# -------------------- stopping


@pytest.mark.parametrize("case", cases(FILE, "stopping"))
def test_generation_stops_at_the_recorded_steps(case, tokenizers):
    given, expected = case["input"], case["expected"]
    tokenizer = tokenizers[given["tokenizer"]]
    prompt = torch.tensor([tokenizer(given["prompt"]).input_ids])
    criteria = KeywordsStoppingCriteria(given["keywords"], tokenizer, prompt)
    assert [ids.tolist() for ids in criteria.keyword_ids] == expected["keyword_ids"]
    assert (criteria.max_keyword_len, criteria.start_len) == (
        expected["max_keyword_len"],
        expected["start_len"],
    )
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in given["generated"]]
    stops = []
    for step in range(max(map(len, rows)) + 1):
        batch = [prompt[0].tolist() + [row[min(i, len(row) - 1)] for i in range(step)] for row in rows]
        stops.append(criteria(torch.tensor(batch), None).all().item())
    assert stops == expected["stops"]


def stopping_steps(criteria, row):
    return [criteria(torch.tensor([row[:step]]), None).tolist() == [True] for step in range(1, len(row) + 1)]


def test_generation_from_embeddings_sees_only_new_ids(tokenizers):
    """The reference searches a wrong slice here: it misses keywords early and finds them late."""
    tokenizer = tokenizers["tiny_tokenizer"]
    prompt = tokenizer_image_token(
        "USER: <image>\nstop or go? " * 3 + "ASSISTANT:", tokenizer, return_tensors="pt"
    )
    criteria = KeywordsStoppingCriteria(["stop"], tokenizer, prompt[None])
    row = tokenizer(
        "yes, please stop right here and now, thank you very much", add_special_tokens=False
    ).input_ids
    texts = [tokenizer.decode(row[:step]) for step in range(1, len(row) + 1)]
    first = next(step for step, text in enumerate(texts) if "stop" in text)
    steps = stopping_steps(criteria, row)
    assert steps.index(True) == first
    # one of the last two tokens is part of the keyword; after that it is over
    assert not any(steps[:first]) and not any(steps[first + criteria.max_keyword_len :])


def test_rows_of_a_batch_stop_one_by_one(tokenizers):
    tokenizer = tokenizers["tiny_tokenizer"]
    criteria = KeywordsStoppingCriteria(["</s>"], tokenizer, torch.tensor([[1, 5, -200, 6, 7, 8, 9]]))
    assert criteria(torch.tensor([[5, 2], [5, 6]]), None).tolist() == [True, False]
    assert criteria.call_for_batch(torch.tensor([[5, 2]]), None) is True


def test_generate_takes_the_criteria(tokenizers):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizers["tiny_tokenizer"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.tensor([tokenizer("hello").input_ids])
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    free = model.generate(prompt, **options)[0, prompt.shape[1] :].tolist()
    keyword = tokenizer.decode(free[3:5])
    criteria = KeywordsStoppingCriteria([keyword], tokenizer, prompt)
    stopped = model.generate(prompt, stopping_criteria=[criteria], **options)[0, prompt.shape[1] :].tolist()
    assert len(stopped) < len(free) and free[: len(stopped)] == stopped
    assert keyword in tokenizer.decode(stopped)


def test_kept_pixels_are_never_more_than_the_image_has():
    for width, height in [(1, 1), (10, 10), (5000, 17)]:
        best = mm_utils.select_best_resolution((width, height), [(336, 672), (672, 336), (672, 672)])
        assert best is not None and math.prod(best) in (336 * 672, 672 * 672)
    assert mm_utils.select_best_resolution((5, 5), []) is None
