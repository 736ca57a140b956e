"""llava.train.data.dataset: samples, batches, several images, faults named by record."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from recorded_training import dialog, prepared_tokenizer

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.train.records import DataError
from llava.train.train import (
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
)

ANSWER = ("gpt", "A cat.")


@pytest.fixture(scope="module")
def tokenizer(checkpoints: Path) -> Any:
    return prepared_tokenizer(checkpoints / "vicuna-tiny", max_length=512)


@pytest.fixture(scope="module")
def processor(checkpoints: Path) -> Any:
    args = SimpleNamespace(mm_vision_select_layer=-2, mm_vision_select_feature="patch")
    return CLIPVisionTower(str(checkpoints / "tiny-clip"), args=args).image_processor


def _args(training_data: Path, processor: Any, **changes: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "image_folder": str(training_data / "images"),
            "image_processor": processor,
            "image_aspect_ratio": "pad",
            "is_multimodal": True,
            "mm_use_im_start_end": False,
            **changes,
        }
    )


def _dataset(records: Any, folder: Path, tokenizer: Any, args: Any, template: str = "v1") -> Any:
    path = folder / "records.json"
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return LazySupervisedDataset(str(path), tokenizer, args, conv_templates[template])


def test_a_record_without_a_word_has_a_modality(training_data: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Grouping by modality reads it from the sign, and refuses a length of 0."""
    blank, two = (dialog(("human", text), ("gpt", "")) for text in (" ", "Who is?"))
    args = _args(training_data, None)
    data = _dataset([{"conversations": blank}, {"conversations": two}], tmp_path, tokenizer, args)
    assert data.modality_lengths.tolist() == [-1, -2]


def test_items_and_batch(training_data: Path, tokenizer: Any, processor: Any) -> None:
    args = _args(training_data, processor, data_path=str(training_data / "finetune.json"))
    module = make_supervised_data_module(tokenizer, args, conv_templates["v1"])
    dataset = module["train_dataset"]
    assert module["eval_dataset"] is None and len(dataset) == 64
    items = [dataset[i] for i in range(3)]
    assert [item["image"].shape for item in items] == [(3, 56, 56)] * 3
    assert [bool(item["image"].any()) for item in items] == [True, True, False]  # the third is a text
    batch = module["data_collator"](items)
    assert sorted(batch) == ["attention_mask", "images", "input_ids", "labels"]
    assert batch["images"].shape == (3, 3, 56, 56)
    for row, (item, mask) in enumerate(zip(items, batch["attention_mask"], strict=True)):
        length = len(item["input_ids"])
        assert torch.equal(batch["input_ids"][row, :length], item["input_ids"])
        assert (batch["labels"][row, length:] == IGNORE_INDEX).all()
        assert not mask[length:].any()


def test_lengths_count_words_and_images(training_data: Path, tokenizer: Any, processor: Any) -> None:
    path = training_data / "finetune.json"
    dataset = LazySupervisedDataset(str(path), tokenizer, _args(training_data, processor))
    for i, record in enumerate(json.loads(path.read_text())[:6]):
        words = sum(len(turn["value"].split()) for turn in record["conversations"])
        seen = "image" in record
        assert int(dataset.lengths[i]) == words + 128 * seen
        assert int(dataset.modality_lengths[i]) == (words if seen else -words)


def test_collator_cuts_at_the_limit(tokenizer: Any) -> None:
    short = SimpleNamespace(model_max_length=4, pad_token_id=0)
    sample = {"input_ids": torch.arange(1, 9), "labels": torch.arange(1, 9)}
    batch = DataCollatorForSupervisedDataset(short)([sample])
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(("limit", "kept"), [(8, 2), (5, 1), (2, 1)])
def test_images_whose_tokens_are_cut_off_go_with_them(limit: int, kept: int) -> None:
    """One is left as a stand-in for a row without marks, as a text has one."""
    ids = torch.tensor([1, 5, 6, IMAGE_TOKEN_INDEX, 7, IMAGE_TOKEN_INDEX, 8, 9])
    sample_images = [torch.full((3, 2, 2), float(number)) for number in range(2)]
    sample = {"input_ids": ids, "labels": ids, "image": sample_images, "image_sizes": [(1, 1), (2, 2)]}
    batch = DataCollatorForSupervisedDataset(SimpleNamespace(model_max_length=limit, pad_token_id=0))(
        [sample]
    )
    assert batch["images"][:, 0, 0, 0].tolist() == [0, 1][:kept]
    assert batch["image_sizes"] == [(1, 1), (2, 2)][:kept]


def test_several_images_keep_their_places(
    training_data: Path, tokenizer: Any, processor: Any, tmp_path: Path
) -> None:
    names = ["pic_000.png", "pic_001.png"]
    records = [
        {"id": "two", "image": names, "conversations": dialog(("human", "<image> or <image>?"), ANSWER)},
        {"id": "one", "image": names[:1], "conversations": dialog(("human", "What?\n<image>"), ANSWER)},
    ]
    args = _args(training_data, processor)
    items = [one for one in _dataset(records, tmp_path, tokenizer, args)]
    assert [int((item["input_ids"] == IMAGE_TOKEN_INDEX).sum()) for item in items] == [2, 1]
    batch = DataCollatorForSupervisedDataset(tokenizer)(items)
    sample_images = [Image.open(training_data / "images" / name) for name in (*names, names[0])]
    assert torch.equal(batch["images"], process_images(sample_images, processor, args))
    single = {**records[1], "image": names[0]}
    alone = _dataset([single], tmp_path, tokenizer, args)[0]
    assert torch.equal(alone["input_ids"], items[1]["input_ids"])  # a list of one is one image


def test_anyres_tiles_equal_those_of_inference(
    training_data: Path, tokenizer: Any, processor: Any, tmp_path: Path
) -> None:
    grid = [[56, 112], [112, 56], [112, 112]]
    args = _args(training_data, processor, image_aspect_ratio="anyres", image_grid_pinpoints=grid)
    records = [
        {"id": 1, "image": "pic_003.png", "conversations": dialog(("human", "<image>\nWhat?"), ANSWER)},
        {"id": 2, "conversations": dialog(("human", "What?"), ANSWER)},
    ]
    batch = DataCollatorForSupervisedDataset(tokenizer)(list(_dataset(records, tmp_path, tokenizer, args)))
    sample_image = Image.open(training_data / "images" / "pic_003.png")
    assert torch.equal(batch["images"][0], process_images([sample_image], processor, args)[0])
    assert batch["images"][1].shape == (1, 3, 56, 56)
    assert batch["image_sizes"] == [sample_image.size, (56, 56)]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"a": 1}, "holds a JSON object"),
        ("plain text", "records.json"),
        ([{"id": "x"}], "record 0 (id 'x'): it has no 'conversations'"),
        ([{"id": "x", "conversations": []}], "'conversations' is empty"),
        ([{"id": "x", "conversations": dialog(("user", "a"), ANSWER)}], "turn 0 is from 'user'"),
        ([{"id": "x", "conversations": dialog(("human", "a"), ("human", "b"))}], "alternate"),
        ([{"id": "x", "conversations": dialog(("human", 3), ANSWER)}], "a JSON number; expected text"),  # type: ignore[arg-type]
        (
            [{"id": "x", "image": "a.png", "conversations": dialog(("human", "no token"), ANSWER)}],
            "it has 1 image(s) but 0 <image> token(s)",
        ),
        (
            [{"id": "x", "image": ["a", "b"], "conversations": dialog(("human", "<image>"), ANSWER)}],
            "it has 2 image(s) but 1 <image> token(s)",
        ),
        ([{"id": "x", "image": None, "conversations": dialog(("human", "a"), ANSWER)}], "'image' is None"),
    ],
)
def test_faulty_files_are_refused(
    records: Any, message: str, training_data: Path, tokenizer: Any, processor: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        _dataset(records, tmp_path, tokenizer, _args(training_data, processor))
    assert message in str(caught.value)


def test_missing_data_file_is_named(training_data: Path, tokenizer: Any, processor: Any) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json"):
        LazySupervisedDataset("/nowhere.json", tokenizer, _args(training_data, processor))


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_broken_image_names_record_and_path(
    content: bytes | None, training_data: Path, tokenizer: Any, processor: Any, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    args = _args(training_data, processor, image_folder=str(tmp_path))
    record = {"id": "q7", "image": "bad.png", "conversations": dialog(("human", "<image>\nWhat?"), ANSWER)}
    dataset = _dataset([record], tmp_path, tokenizer, args)
    with pytest.raises(DataError, match=r"record 0 \(id 'q7'\).*bad\.png"):
        dataset[0]


def test_missing_image_folder_is_named(
    training_data: Path, tokenizer: Any, processor: Any, tmp_path: Path
) -> None:
    record = {"id": 1, "image": "a.png", "conversations": dialog(("human", "<image>\nWhat?"), ANSWER)}
    dataset = _dataset([record], tmp_path, tokenizer, _args(training_data, processor, image_folder=None))
    with pytest.raises(DataError, match="--image_folder is missing"):
        dataset[0]
