"""Records with a video: which frames train, their place, words about time, lengths, folders, and faults."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from doctoring import doctor
from test_video import no_video
from video_data import ask, record, settings_of

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.model_inputs import encode_images, image_length
from llava.model.multimodal.media import process_video
from llava.train.args import make_data_settings, parse_args
from llava.train.data.collator import DataCollatorForSupervisedDataset
from llava.train.data.dataset import LazySupervisedDataset
from llava.train.data.samples import SampleMaker
from llava.train.data.start_checks import check_data as check_start
from llava.train.data.table import load_records
from llava.train.data_args import DataArguments
from llava.train.plan import DataSettings
from llava.train.records import DataError, find_fault
from llava.utils import UserError
from llava.video import Sampling, read_video

# ---- samples


@pytest.mark.parametrize("video", ["clip.mp4", "frames", ["p.png", "frames/f1.png", "frames/f0.png"]])
@pytest.mark.parametrize("text", ["<video>\nWhat happens?", "What happens?\n<image>"])
def test_training_reads_what_chat_reads(assistant: Any, media: Path, video: Any, text: str) -> None:
    maker = SampleMaker(assistant.tokenizer, settings_of(assistant, media), assistant.template)
    sample = maker.make(record(video, text))
    names = [media / one for one in video] if isinstance(video, list) else media / video
    clip = read_video(names, Sampling(frames=0))
    assert torch.equal(sample["image"], process_video(clip, assistant.image_processor))
    assert sample["modalities"] == ["video"] and sample["image_sizes"] == [clip.size]
    asked = assistant.loaded.read(assistant._dialog(("What happens?", [clip]))).ids
    assert sample["input_ids"][: len(asked)].tolist() == asked


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"video_fps": 2, "frames_upbound": 4}, [0, 1.4, 2.9, 4.4]),
        ({"frames_upbound": 8}, [0, 1, 2, 3, 4]),
        ({"frames_upbound": 8, "force_sample": True}, [0, 0.6, 1.2, 1.8, 2.5, 3.1, 3.7, 4.4]),
    ],
)
def test_frames_and_the_words_about_them(
    assistant: Any, media: Path, fields: dict[str, Any], seconds: list[float]
) -> None:
    settings = settings_of(assistant, media, add_time_instruction=True, **fields)
    maker = SampleMaker(assistant.tokenizer, settings, assistant.template)
    sample = maker.make(record("clip.mp4", "<image>\nWhat happens?"))
    assert len(sample["image"]) == len(seconds)
    words = (
        f"The video lasts for 4.50 seconds, and {len(seconds)} frames are uniformly sampled from it. These "
        f"frames are located at {','.join(f'{one:.2f}s' for one in seconds)}.Please answer the following "
        "questions related to this video.\n\nWhat happens?"
    )
    told = DataSettings(is_multimodal=True, image_processor=assistant.image_processor)
    plain = SampleMaker(assistant.tokenizer, told, assistant.template)
    expected = plain.encode({"image": "p.png", "conversations": ask(f"<image>\n{words}")})
    assert sample["input_ids"].tolist() == expected["input_ids"].tolist()
    assert sample["labels"].tolist() == expected["labels"].tolist()
    # known as well before a frame is decoded
    known = maker.encode(record("clip.mp4"), maker.outline(record("clip.mp4")))
    assert known["input_ids"].tolist() == sample["input_ids"].tolist()


def test_images_as_frames_are_told_as_two_a_second(assistant: Any, media: Path) -> None:
    settings = settings_of(assistant, media, add_time_instruction=True)
    maker = SampleMaker(assistant.tokenizer, settings, assistant.template)
    for video in ("frames", [f"frames/f{index}.png" for index in range(6)]):
        found = maker.outline(record(video))
        assert found is not None and found.seconds == (0, 0.5, 1, 1.5, 2, 2.5)
        assert found.time_instruction().startswith("The video lasts for 3.00 seconds, and 6 frames")


@torch.no_grad()
def test_a_batch_of_an_image_a_video_and_a_text_is_each_alone(assistant: Any, media: Path) -> None:
    maker = SampleMaker(assistant.tokenizer, settings_of(assistant, media), assistant.template)
    pair = {"image": ["p.png", "frames/f1.png"], "conversations": ask("<image> and <image>?")}
    records = [{"image": "p.png", "conversations": ask("<image>\nWhat?")}, record("frames"), pair]
    samples = [maker.make(one) for one in (*records, record("clip.mp4"), {"conversations": ask("Hi.")})]
    collate = DataCollatorForSupervisedDataset(assistant.tokenizer)
    batch = collate(samples)
    assert batch["modalities"] == ["image", "video", "image", "image", "video", "image"]
    together = assistant.model(**batch, skip_logits=True)
    for index, sample in enumerate(samples):
        alone = assistant.model(**collate([sample]), skip_logits=True)
        torch.testing.assert_close(alone.loss_sums[0], together.loss_sums[index], rtol=1e-4, atol=1e-4)
    videos = collate([samples[1], samples[1]])  # of one shape: one tensor
    assert videos["images"].shape[:2] == (2, 6) and videos["modalities"] == ["video", "video"]
    torch.testing.assert_close(
        assistant.model(**videos, skip_logits=True).loss_sums,
        together.loss_sums[[1, 1]],
        rtol=1e-4,
        atol=1e-4,
    )
    assert "modalities" not in collate([samples[0], samples[4]])


def test_a_video_whose_token_is_cut_off_stays_for_the_tower(assistant: Any, media: Path) -> None:
    maker = SampleMaker(assistant.tokenizer, settings_of(assistant, media), assistant.template)
    samples = [maker.make(record("frames", "word " * 40 + "<image>")), maker.make(record("clip.mp4"))]
    tokenizer = SimpleNamespace(model_max_length=10, pad_token_id=0)
    for sample in samples:
        place = sample["input_ids"].tolist().index(IMAGE_TOKEN_INDEX)
        tokenizer.model_max_length = min(tokenizer.model_max_length, place)
    batch = DataCollatorForSupervisedDataset(tokenizer)(samples)
    assert len(batch["images"]) == len(batch["modalities"]) == 2
    assert IMAGE_TOKEN_INDEX not in batch["input_ids"]


# ---- lengths


def dataset(path: Path, records: list[Any], settings: Any, assistant: Any = None) -> LazySupervisedDataset:
    (path / "d.json").write_text(json.dumps(records))
    tokenizer, conv = (assistant.tokenizer, assistant.template) if assistant else (None, None)
    return LazySupervisedDataset(str(path / "d.json"), tokenizer, settings, conv)


def test_lengths_count_frames_before_any_is_decoded(media: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("llava.train.data.samples.read_video", lambda *_: pytest.fail("decoded"))
    records = [
        record("clip.mp4", "<video> a b"),
        record("frames", "<video> a b"),
        record("none.mp4", "<video> a b"),
        {"image": "p.png", "conversations": ask("<image> a b")},
        {"conversations": ask("a b c")},
    ]
    settings = DataSettings(image_folder=str(media), is_multimodal=True, frame_length=7, frames_upbound=5)
    found = dataset(tmp_path, records, settings)
    assert found.lengths.tolist() == [6 + 5 * 7, 6 + 5 * 7, 6, 6 + 128, 6]
    assert found.modality_lengths.tolist() == [6, 6, 6, 6, -6]
    rest, held = found.split(0.4)
    assert sorted([*rest.lengths.tolist(), *held.lengths.tolist()]) == sorted(found.lengths.tolist())


def test_the_doctor_counts_the_tokens_of_the_model(
    assistant: Any, checkpoints: Path, media: Path, tmp_path: Path
) -> None:
    from llava.train.data.check_settings import CheckSettings
    from llava.train.data.tokens import TokenChecker

    data = tmp_path / "d.json"
    data.write_text(json.dumps([record("clip.mp4")]))
    config = assistant.model.config
    common = {"model_name_or_path": str(checkpoints / "llava-tiny-v1.6"), "version": "v1"}
    settings = CheckSettings(
        str(data), str(media), vision_tower=str(checkpoints / "tiny-clip"), mm_newline_position="grid",
        mm_patch_merge_type=config.mm_patch_merge_type, image_aspect_ratio="anyres",
        mm_vision_select_layer=-2, add_time_instruction=True, **common,
    )  # fmt: skip
    checker = TokenChecker(settings)
    clip = read_video(media / "clip.mp4", settings.sampling)
    maker = SampleMaker(assistant.tokenizer, settings_of(assistant, media), assistant.template)
    outline = maker.outline(record("clip.mp4"))
    config.mm_newline_position = "grid"
    try:
        counted = image_length(assistant.model, clip)
        assert len(encode_images(assistant.model, assistant.image_processor, [clip])[0]) == counted
    finally:
        del config.mm_newline_position
    assert checker.image_tokens is not None and checker.image_tokens.count(outline) == counted
    checker.limit = len(checker.maker.encode(record("clip.mp4"), outline)["input_ids"]) - 1 + counted
    assert list(checker.check(record("clip.mp4"), [outline])) == []
    checker.limit -= 1
    (fault,) = checker.check(record("clip.mp4"), [outline])
    assert f"{counted} of them for frames" in fault.reason


# ---- what is wrong with records


@pytest.mark.parametrize(
    ("video", "text", "more", "said"),
    [
        ("a.mp4", "<video> a <image>", {}, ""),
        ("a.mp4", "a", {}, "<video> or <image> stands in 0 of its turns; expected in one"),
        ("", "<video>", {}, "'video' is ''; expected the name of a file or folder, or a list"),
        (3, "<video>", {}, "'video' is 3;"),
        (["a.png", 3], "<video>", {}, "'video' is"),
        ({"bytes": "a"}, "<video>", {}, "'video' is"),
        ("https://x.org/a.mp4", "<video>", {}, "is the address 'https://x.org/a.mp4'; training reads files"),
        (["http://x.org/a.png"], "<video>", {}, "is the address"),
        ("a.mp4", "<video> <image>", {"image": "a.png"}, "has both 'image' and 'video'"),
        ("a.mp4", "<video>", {"image": []}, ""),
        (None, "<image>", {"image": "a.png"}, ""),
        ([], "a <video>", {}, ""),
    ],
)
def test_faults(video: Any, text: str, more: dict[str, Any], said: str) -> None:
    fault = find_fault(record(video, text, **more))
    assert said in fault and bool(said) == bool(fault)


def test_a_second_turn_with_the_video_is_refused() -> None:
    turns = [*ask("<video> a"), *ask("<image> b")]
    assert "stands in 2 of its turns" in find_fault({"video": "a.mp4", "conversations": turns})


BROKEN = {
    "none.mp4": "is empty",
    "cut.mp4": "damaged or in no format",
    "bare": "folder without images",
    "gone.mp4": "no such file",
}


def test_the_doctor_names_broken_videos(media: Path, tmp_path: Path) -> None:
    records = [record("clip.mp4"), *(record(one) for one in BROKEN), record(["p.png"]), record(["gone.png"])]
    records += [record("../clip.mp4"), record("clip.mp4", "a", image="p.png"), record("frames")]
    (tmp_path / "d.json").write_text(json.dumps(records))
    report = tmp_path / "r.json"
    flags = ("--data_path", tmp_path / "d.json", "--video_folder", media, "--json", report)
    assert doctor(*flags) == 1
    faults = json.loads(report.read_text())["faults"]
    assert [(one["index"], one["kind"]) for one in faults] == [
        (1, "video_corrupt"), (2, "video_corrupt"), (3, "video_corrupt"), (4, "video_missing"),
        (6, "video_missing"), (7, "video_outside"), (8, "mixed_media"),
    ]  # fmt: skip
    for fault, said in zip(faults, BROKEN.values(), strict=False):
        assert said in fault["reason"] and "\n" not in fault["reason"]
    with pytest.raises(UserError, match="record 0 has a video, 'clip.mp4'; name its folder with --video_f"):
        doctor("--data_path", tmp_path / "d.json")


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_video_ends_training_or_is_skipped(
    assistant: Any, media: Path, tmp_path: Path, name: str
) -> None:
    records = [record(name, id="a7"), record("frames")]
    found = dataset(tmp_path, records, settings_of(assistant, media), assistant)
    with pytest.raises(DataError, match=f"record 0 .id 'a7'.: .*{BROKEN[name]}") as caught:
        found[0]
    assert "\n" not in str(caught.value)
    skipping = settings_of(assistant, media, on_bad_sample="skip")
    skipped = dataset(tmp_path, records, skipping, assistant)
    assert len(skipped[0]["image"]) == 6
    assert list(skipped.skipped.read()) == ["record 0 (id 'a7')"]


def test_a_file_of_no_moving_images(assistant: Any, tmp_path: Path) -> None:
    pytest.importorskip("av")
    no_video("sound.wav", tmp_path)
    found = dataset(tmp_path, [record("sound.wav")], settings_of(assistant, tmp_path), assistant)
    with pytest.raises(DataError, match="record 0: the video .*no moving images"):
        found[0]


# ---- folders and flags


@pytest.mark.parametrize(
    ("mixture", "fields", "found"),
    [
        ("", {"image_folder": "media"}, True),
        ("", {"image_folder": "other", "video_folder": "media"}, True),
        ("", {"image_folder": "media", "video_folder": "other"}, False),
        (", image_folder: media", {"image_folder": "other", "video_folder": "other"}, True),
        (", video_folder: media", {"image_folder": "other"}, True),
        (", video_folder: media, image_folder: other", {"image_folder": "other"}, True),
        (", video_folder: other, image_folder: media", {"image_folder": "media"}, False),
    ],
)
def test_where_videos_are_looked_for(
    media: Path, tmp_path: Path, mixture: str, fields: dict[str, str], found: bool
) -> None:
    (tmp_path / "media").symlink_to(media)
    (tmp_path / "other").mkdir()
    (tmp_path / "d.json").write_text(json.dumps([record("clip.mp4")]))
    path = tmp_path / "m.yaml"
    path.write_text(f"- {{path: d.json{mixture}}}\n")
    given = {name: str(tmp_path / folder) for name, folder in fields.items()}
    data = LazySupervisedDataset(str(path), None, DataSettings(is_multimodal=True, **given))
    assert (data.lengths[0] > 128) == found
    report = tmp_path / "r.json"
    code = doctor(
        "--data_path", path, "--json", report, *(x for k, v in given.items() for x in (f"--{k}", v))
    )
    assert code == (0 if found else 1)


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "cached"])
def test_every_kind_of_file_knows_its_videos(tmp_path: Path, kind: str) -> None:
    records = [
        record("a.mp4"),
        {"conversations": ask("a")},
        {"image": "b.png", "conversations": ask("<image>")},
    ]
    path = tmp_path / f"d.{'json' if kind == 'cached' else kind}"
    if kind == "parquet":
        from pyarrow import Table, parquet

        rows = [{key: one.get(key) for key in ("video", "image", "conversations")} for one in records]
        parquet.write_table(Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        path.write_text(json.dumps(records))
    table = load_records(path, cache_dir=tmp_path / "tables" if kind == "cached" else None)
    assert table.with_video.tolist() == [True, False, False]
    assert table.with_images.tolist() == [True, False, True]
    assert table.first_with_images() == [0, 2]


def start(path: Path, records: list[Any], **fields: Any) -> None:
    args = SimpleNamespace(**{
        "image_folder": None, "video_folder": None, "on_bad_sample": "error",
        "allow_images_outside_folder": False, "is_multimodal": True, **fields,
    })  # fmt: skip
    check_start(dataset(path, records, args), args, vision_tower=fields.get("tower", "any"), template="v1")


def test_faults_of_the_data_as_a_whole(media: Path, tmp_path: Path, monkeypatch: Any) -> None:
    start(tmp_path, [record("clip.mp4")], image_folder=str(media))
    for fields, said in (
        ({}, "record 0 has a video, 'clip.mp4'; name its folder with --video_folder or --image_folder"),
        ({"video_folder": "/none"}, "the video folder /none does not exist.*check --video_folder"),
        ({"tower": None}, "the data has images or videos, but --vision_tower is missing"),
    ):
        with pytest.raises(UserError, match=said):
            start(tmp_path, [record("clip.mp4")], **fields)
    with pytest.raises(UserError, match="the video '../a.mp4' climbs and lies outside of the video folder"):
        start(tmp_path, [record("../a.mp4")], video_folder=str(media))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match="training on video files needs"):
        start(tmp_path, [record("clip.mp4")], video_folder=str(media))
    start(tmp_path, [record("frames")], video_folder=str(media))  # images need no reader


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"frames_upbound": -1}, "--frames_upbound is -1; expected 0"),
        ({"frames_upbound": 10**6}, "--frames_upbound is 1000000"),
        ({"video_fps": 0}, "--video_fps is 0.*; expected a number of frames"),
        ({"video_fps": float("nan")}, "--video_fps is nan"),
        ({"force_sample": True}, "--force_sample True takes --frames_upbound frames"),
    ],
)
def test_flags_that_choose_no_frames(fields: dict[str, Any], said: str, media: Path) -> None:
    with pytest.raises(UserError, match=said):
        DataArguments(**fields)
    with pytest.raises(UserError, match=said):
        doctor("--data_path", media, *(str(x) for k, v in fields.items() for x in (f"--{k}", v)))


def test_the_flags_of_llava_videos_command_line_are_taken(tmp_path: Path, checkpoints: Path) -> None:
    video = (
        "--video_fps 1 --frames_upbound 110 --force_sample True --add_time_instruction True "
        "--mm_newline_position grid --mm_spatial_pool_stride 2 --mm_spatial_pool_mode bilinear"
    )
    paths = {"--model_name_or_path": checkpoints / "vicuna-tiny", "--vision_tower": checkpoints / "tiny-clip"}
    paths |= {"--data_path": "d.json", "--video_folder": "v", "--output_dir": tmp_path / "out"}
    given = [*(str(one) for pair in paths.items() for one in pair), *video.split()]
    model_args, data_args, _ = parse_args(given)
    settings = make_data_settings(model_args, data_args, label_masks=None)
    assert SampleMaker(None, settings).sampling == Sampling(110, 1.0, always=True)
    assert (settings.video_folder, settings.add_time_instruction) == ("v", True)
    assert (model_args.mm_newline_position, model_args.mm_spatial_pool_stride) == ("grid", 2)
    for flag, value in (("--mm_newline_position", "line"), ("--mm_spatial_pool_stride", "0")):
        with pytest.raises(UserError, match=f"{flag} is .{value}|{flag} is {value}"):
            parse_args([*given, flag, value])
