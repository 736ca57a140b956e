"""Streams and runs of train() on images, videos and texts, and what a dry run shows of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded_training import flags, run_train
from video_data import ask, record, settings_of

import llava
from llava.train.data.streaming import StreamingDataset
from llava.train.plan import DataSettings
from llava.train.records import DataError
from llava.video import read_video

# ---- streams


def test_a_stream_reads_videos_of_a_folder(assistant: Any, media: Path, tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist([record("frames"), record("clip.mp4")]), tmp_path / "d.parquet")
    settings = settings_of(assistant, media, streaming=True)
    stream = StreamingDataset(str(tmp_path / "d.parquet"), assistant.tokenizer, settings, assistant.template)
    samples = iter(stream)
    assert sorted(len(next(samples)["image"]) for _ in range(2)) == [5, 6]


def test_a_video_inside_of_a_shard_is_refused(media: Path, tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "a.json").write_text(json.dumps({"conversations": ask("<video>")}))
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "a.json", "a.json")
        tar.add(media / "clip.mp4", "a.mp4")
    stream = StreamingDataset(str(tmp_path / "s.tar"), None, DataSettings(is_multimodal=True))
    with pytest.raises(DataError, match="s.tar: a: it has the video 'mp4', which is not read from a shard"):
        next(iter(stream))


# ---- runs


V16 = (
    "--version v1 --image_aspect_ratio anyres --image_grid_pinpoints [[56,112],[112,56]] "
    "--mm_patch_merge_type spatial_unpad --mm_projector_type mlp2x_gelu --mm_use_im_start_end False "
    "--mm_use_im_patch_token False --learning_rate 1e-3 --save_strategy no --model_max_length 900"
)


@pytest.fixture
def command(
    checkpoints: Path, training_data: Path, media: Path, tmp_path: Path
) -> Callable[[str], list[str]]:
    records = [
        {"image": "pic_000.png", "conversations": ask("<image>\nWhat?")},
        record("clip.mp4", "<video>\nWhat happens?"),
        record("frames", "<video>\nWhat happens?"),
        {"conversations": ask("Who?")},
    ]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    video = (
        f"--video_folder {media} --frames_upbound 4 --add_time_instruction True --mm_newline_position grid"
    )
    more = f"{V16} {video} --data_path {tmp_path}/mix.json"
    return lambda extra: flags(checkpoints, training_data, tmp_path / "llava-out", f"{more} {extra}")


SLOW = ("--lora_enable True --lora_r 4", "--packing True")


@pytest.mark.parametrize("how", ["", *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)])
def test_a_run_on_images_videos_and_texts(
    command: Callable[[str], list[str]], how: str, tmp_path: Path, media: Path
) -> None:
    run = run_train(command(f"{how} --max_steps 2 --warmup_ratio 0"), order=[0, 1, 2, 3] * 2)
    assert len(run.loss) == 2 and run.loss[1] < run.loss[0]
    if not how:
        content = json.loads((tmp_path / "llava-out" / "config.json").read_text())
        assert content["mm_newline_position"] == "grid"
        model = llava.load(tmp_path / "llava-out", device="cpu", dtype="float32")
        assert isinstance(model.chat("What happens?", read_video(media / "clip.mp4"), max_new_tokens=2), str)


@pytest.mark.slow
def test_dry_run_shows_videos(
    command: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(command("--dry_run True --group_by_length True")).loss == []
    out = capsys.readouterr().out
    assert "4 samples, 1 with images, 2 with a video, 1 of text alone" in out


@pytest.mark.slow
def test_dry_run_shows_the_tokens_of_a_video(
    command: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mix.json").write_text(json.dumps([record("clip.mp4")]))
    run_train(command("--dry_run True"))
    assert f"<video: {4 * 2 * 3} tokens>" in capsys.readouterr().out
