"""Videos as frames: a few of a file, read with PyAV, or images that are frames already. No torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from PIL import Image

from llava.images import IMAGE_ENDINGS, MAX_PIXELS, as_image, load_image
from llava.utils import UserError, import_optional, shortened

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# What LLaVA-NeXT's scripts train and ask with.
DEFAULT_FRAMES = 32
DEFAULT_FPS = 1.0
MOST_FRAMES = 4096


class VideoError(UserError):
    """A video that is missing, broken, without frames or of a kind that cannot be used."""


@dataclass(frozen=True)
class Video:
    """Frames of a video in their order, RGB, all of one size; `name` is for messages.

    seconds: when each frame is shown, and duration of the whole, where the file tells.
    """

    frames: tuple[Image.Image, ...]
    name: str = "given"
    seconds: tuple[float, ...] = field(default=())
    duration: float | None = None

    def __post_init__(self) -> None:
        if not self.frames:
            raise VideoError(f"the video {self.name!r} has no frames; give at least one image")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame."""
        return self.frames[0].size

    @property
    def mode(self) -> str:
        """What it is, where images tell their mode: a prompt is cached under this and its content."""
        return "video"

    def tobytes(self) -> bytes:
        """Return the content of all frames."""
        return b"".join(frame.tobytes() for frame in self.frames)

    def time_instruction(self) -> str:
        """Say in words how long the video is and where its frames lie, as LLaVA-Video was trained."""
        if self.duration is None or not self.seconds:
            return ""
        times = ",".join(f"{one:.2f}s" for one in self.seconds)
        return (
            f"The video lasts for {self.duration:.2f} seconds, and {len(self.frames)} frames are uniformly "
            f"sampled from it. These frames are located at {times}.Please answer the following questions "
            "related to this video."
        )


@dataclass(frozen=True)
class Sampling:
    """Which frames are taken: `fps` a second, and where those are more than `frames`, so many evenly spread.

    frames 0: no limit. always: `frames` of them evenly spread, however long the video is.
    """

    frames: int = DEFAULT_FRAMES
    fps: float = DEFAULT_FPS
    always: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.frames <= MOST_FRAMES:
            raise UserError(f"frames is {self.frames}; expected 0 (no limit) to {MOST_FRAMES}")
        if not 0 < self.fps < float("inf"):
            raise UserError(f"fps is {self.fps}; expected a number of frames a second above 0")

    def choose(self, total: int, rate: float) -> list[int]:
        """Return the indices of frames to take of `total`, shown at `rate` a second, in their order."""
        step = max(1, round(rate / self.fps))
        chosen = list(range(0, total, step))
        limit = self.frames
        if not limit or (len(chosen) <= limit and not self.always):
            if len(chosen) > MOST_FRAMES:
                raise VideoError(f"it has {len(chosen)} frames to take; expected at most {MOST_FRAMES}")
            return chosen
        # evenly from the first to the last, rounded down; a video of fewer frames repeats some
        return [int(index * (total - 1) / (limit - 1)) for index in range(limit)] if limit > 1 else [0]


def video_of_images(sources: Sequence[Image.Image | str | os.PathLike[str]], name: str = "given") -> Video:
    """Return a video whose frames are images, or files of images. Raises VideoError without any."""
    frames = tuple(as_image(one if isinstance(one, Image.Image) else str(one)) for one in sources)
    return Video(frames, name)


def read_video(source: str | os.PathLike[str], sampling: Sampling | None = None) -> Video:
    """Read frames of a video file, or of a folder of images in the order of their names.

    Decodes the whole file up to the last frame that is taken, so that frames are exact. Needs PyAV. Raises
    VideoError.
    """
    path, sampling = Path(source), sampling or Sampling()
    name = shortened(str(source))
    if "://" in str(source):
        raise VideoError(f"the video {name!r} is an address; download it and give the file")
    if path.is_dir():
        return _folder(path, sampling)
    _check_file(path, name)
    av = import_optional("av", needed_for="reading a video file", install="av")
    with _opened(av, path, name) as container:
        total, rate = _measure(container, name)
        wanted = sampling.choose(total, rate) if total else []
    with _opened(av, path, name) as container:
        frames, seen = _decode(av, container, set(wanted), name)
    if not seen:
        raise VideoError(f"the video {name!r} has no frames that can be decoded")
    if wanted[-1] >= seen:
        logger.warning("%s holds %d frames, %d can be decoded; frames are taken of those", name, total, seen)
        total, wanted = seen, sampling.choose(seen, rate)
        with _opened(av, path, name) as container:
            frames, _ = _decode(av, container, set(wanted), name)
    return Video(
        tuple(frames[index] for index in wanted),
        name,
        tuple(index / rate for index in wanted),
        total / rate,
    )


def count_frames(source: str | os.PathLike[str], sampling: Sampling | None = None) -> int:
    """Return how many frames `read_video` takes, without decoding any. Raises VideoError."""
    path, sampling = Path(source), sampling or Sampling()
    name = shortened(str(source))
    if path.is_dir():
        return len(sampling.choose(len(_images_in(path)), sampling.fps))
    _check_file(path, name)
    av = import_optional("av", needed_for="reading a video file", install="av")
    with _opened(av, path, name) as container:
        return len(sampling.choose(*_measure(container, name)))


# ---- folders of frames


def _images_in(folder: Path) -> list[Path]:
    found = sorted(one for one in folder.iterdir() if one.suffix[1:].lower() in IMAGE_ENDINGS)
    if not found:
        raise VideoError(f"the video {shortened(str(folder))!r} is a folder without images, its frames")
    return found


def _folder(folder: Path, sampling: Sampling) -> Video:
    """Return the images of a folder as frames; they are taken as they are, unless they are too many."""
    files = _images_in(folder)
    chosen = sampling.choose(len(files), sampling.fps)
    return Video(tuple(load_image(files[index]) for index in chosen), shortened(str(folder)))


# ---- files


def _check_file(path: Path, name: str) -> None:
    if not path.is_file():
        raise VideoError(f"the video {name!r} cannot be read: there is no such file")
    if not path.stat().st_size:
        raise VideoError(f"the video {name!r} is empty (0 bytes)")


@contextmanager
def _opened(av: ModuleType, path: Path, name: str) -> Iterator[InputContainer]:
    """Open a file; what PyAV raises meanwhile becomes VideoError."""
    try:
        # files that name others (playlists) must not open them: nothing but the file itself is read
        with path.open("rb") as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
            yield container
    except VideoError as error:
        if name in str(error):
            raise
        raise VideoError(f"the video {name!r}: {error}") from error
    except UserError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        message = f"the video {name!r} is damaged or in no format that can be read: {error}"
        raise VideoError(message) from error


def _stream(container: InputContainer, name: str) -> VideoStream:
    streams = container.streams.video
    if not streams:
        raise VideoError(f"the video {name!r} has no moving images, only sound or text")
    stream = streams[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(f"the video {name!r} has {stream.width} x {stream.height} pixels; make it smaller")
    return stream


def _measure(container: InputContainer, name: str) -> tuple[int, float]:
    """Return how many frames there are, as the container says or its packets, and how many a second."""
    stream = _stream(container, name)
    total = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    return int(total), float(stream.average_rate or stream.base_rate or 0) or 1.0


def _decode(
    av: ModuleType, container: InputContainer, wanted: set[int], name: str
) -> tuple[dict[int, Image.Image], int]:
    """Return the wanted frames by their index, and how many frames were seen, damage ending them."""
    stream = _stream(container, name)
    stream.thread_type = "AUTO"
    frames: dict[int, Image.Image] = {}
    seen, last = 0, max(wanted, default=-1)
    iterator = container.decode(stream)
    while seen <= last:
        try:
            frame = next(iterator)
        except StopIteration:
            break
        except (av.FFmpegError, ValueError) as error:
            if not seen:
                raise
            logger.warning("%s is damaged behind its frame %d: %s", name, seen, error)
            break
        if seen in wanted:
            frames[seen] = frame.to_image().convert("RGB")
        seen += 1
    return frames, seen
