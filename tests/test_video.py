"""Videos: which frames of a file are taken, folders and lists of frames, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.utils import UserError
from llava.video import Sampling, Video, VideoError, count_frames, read_video, video_of_images

RATE, TOTAL = 10, 45


def write_video(file: Path, total: int = TOTAL, size: tuple[int, int] = (32, 24)) -> Path:
    """Write frames whose brightness is 5 times their place."""
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p"
        for index in range(total):
            image = Image.new("RGB", size, (index * 5,) * 3)
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file


def places(video: Video) -> list[int]:
    """Tell by their brightness which frames were taken."""
    return [round(float(np.asarray(frame).mean()) / 5) for frame in video.frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


# ---- which frames


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0, 10, 20, 30, 40]),
        (Sampling(fps=2), [0, 5, 10, 15, 20, 25, 30, 35, 40]),
        (Sampling(frames=3), [0, 22, 44]),
        (Sampling(frames=8, always=True), [0, 6, 12, 18, 25, 31, 37, 44]),
        (Sampling(frames=0, fps=5), list(range(0, 45, 2))),
        (Sampling(frames=1), [0]),
        (Sampling(fps=1000, frames=0), list(range(45))),
    ],
)
def test_frames_are_taken_as_llava_next_does(clip: Path, sampling: Sampling, expected: list[int]) -> None:
    video = read_video(clip, sampling)
    assert places(video) == expected == [round(second * RATE) for second in video.seconds]
    assert count_frames(clip, sampling) == len(expected)
    assert (video.size, video.duration) == ((32, 24), TOTAL / RATE)


def test_spread_frames_are_numpys(clip: Path) -> None:
    for total in (1, 2, 7, 45, 1000):
        for limit in (1, 2, 8, 31, 32):
            chosen = Sampling(frames=limit, always=True).choose(total, 10)
            assert chosen == np.linspace(0, total - 1, limit, dtype=int).tolist()


def test_a_container_that_counts_no_frames(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mkv")
    assert places(read_video(file)) == [0, 10, 20, 30, 40] and count_frames(file) == 5


def test_the_words_about_time(clip: Path) -> None:
    words = read_video(clip, Sampling(frames=2)).time_instruction()
    assert words.startswith("The video lasts for 4.50 seconds, and 2 frames are uniformly sampled from it.")
    assert "located at 0.00s,4.40s." in words
    assert video_of_images([Image.new("RGB", (2, 2))]).time_instruction() == ""


# ---- images as frames


def test_a_folder_of_images_is_a_video(tmp_path: Path) -> None:
    for index in range(6):
        Image.new("RGB", (4, 4), (index * 5,) * 3).save(tmp_path / f"f{index}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert places(read_video(tmp_path)) == [0, 1, 2, 3, 4, 5]
    assert places(read_video(tmp_path, Sampling(frames=3))) == [0, 2, 5]
    assert count_frames(tmp_path, Sampling(frames=3)) == 3


def test_images_and_their_files_are_frames(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 10).save(tmp_path / "a.png")
    video = video_of_images([tmp_path / "a.png", Image.new("RGB", (4, 4), (5, 5, 5))])
    assert places(video) == [2, 1] and all(frame.mode == "RGB" for frame in video.frames)


# ---- what is no video


def test_a_file_that_was_cut_off_gives_the_frames_it_has(tmp_path: Path, caplog) -> None:
    whole = write_video(tmp_path / "clip.mkv", 40, (160, 120))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = places(read_video(cut, Sampling(fps=5, frames=0)))
    assert 1 < len(found) < 20 and found == list(range(0, 2 * len(found), 2))


def no_video(name: str, folder: Path) -> Path:
    file = folder / name
    if name == "moov.mp4":  # the table of frames stands at the end, and is cut off
        file.write_bytes(write_video(folder / "x.mp4").read_bytes()[:2000])
    elif name == "text.mp4":
        file.write_text("this is no video\n" * 100)
    elif name == "empty.mp4":
        file.write_bytes(b"")
    elif name == "list.m3u8":
        target = write_video(folder / "secret.ts")
        file.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n")
    elif name == "sound.wav":
        import wave

        with wave.open(str(file), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(b"\0\0" * 800)
    elif name == "none":
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("moov.mp4", "damaged or in no format"),
        ("text.mp4", "damaged or in no format"),
        ("empty.mp4", "is empty"),
        ("list.m3u8", "damaged or in no format|no moving images|no frames"),
        ("sound.wav", "no moving images"),
        ("none", "folder without images"),
        ("missing.mp4", "no such file"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(name: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    file = no_video(name, tmp_path)
    for read in (read_video, count_frames):
        with pytest.raises(VideoError, match=said) as caught:
            read(file)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_other_things_that_are_refused() -> None:
    with pytest.raises(VideoError, match="has no frames"):
        video_of_images([])
    with pytest.raises(VideoError, match="is an address"):
        read_video("https://example.com/clip.mp4")
    for wrong in ({"frames": -1}, {"frames": 10**6}, {"fps": 0}, {"fps": float("nan")}):
        with pytest.raises(UserError, match="expected"):
            Sampling(**wrong)
