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
VIDEO_ENDINGS = ("avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv")
FOLDER_RATE = 2.0  # images a second in a folder of frames, as LLaVA-NeXT takes them


Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


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
        return "" if self.duration is None else _in_words(self.seconds, self.duration)


@dataclass(frozen=True)
class Outline:
    """Which frames of a video are taken and when they are shown, told without decoding any.

    chosen: places of the frames among all of them. rate: frames a second.
    """

    chosen: tuple[int, ...]
    total: int
    rate: float

    @property
    def seconds(self) -> tuple[float, ...]:
        """When each frame is shown."""
        return tuple(place / self.rate for place in self.chosen)

    def time_instruction(self) -> str:
        """Return what `Video.time_instruction` says of the video."""
        return _in_words(self.seconds, self.total / self.rate)


def _in_words(seconds: Sequence[float], duration: float) -> str:
    if not seconds:
        return ""
    times = ",".join(f"{one:.2f}s" for one in seconds)
    return (
        f"The video lasts for {duration:.2f} seconds, and {len(seconds)} frames are uniformly "
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
        if limit == 1:
            return [0]
        space = (total - 1) / (limit - 1)  # rounded before it is multiplied, as numpy.linspace does
        return [*(int(index * space) for index in range(limit - 1)), total - 1]


def video_of_images(sources: Sequence[Image.Image | str | os.PathLike[str]], name: str = "given") -> Video:
    """Return a video whose frames are images, or files of images. Raises VideoError without any."""
    frames = tuple(as_image(one if isinstance(one, Image.Image) else str(one)) for one in sources)
    return Video(frames, name)


def read_video(source: Source, sampling: Sampling | None = None) -> Video:
    """Read frames of a video file, or images as frames: a folder's in the order of their names, or a list.

    Decodes a file up to the last frame that is taken, so that frames are exact. Needs PyAV for it. Raises
    VideoError, ImageError for an image that cannot be read.
    """
    sampling = sampling or Sampling()
    images = _images_of(source)
    if images is not None:
        taken = _outline_of_images(len(images), sampling)
        frames = tuple(load_image(images[place]) for place in taken.chosen)
        return Video(frames, _name(source), taken.seconds, taken.total / taken.rate)
    av, path, name = _file(source)
    with _opened(av, path, name) as container:
        total, rate = _measure(container, name)
        wanted = sampling.choose(total, rate) if total else []
    with _opened(av, path, name) as container:
        found, seen = _decode(av, container, set(wanted), name)
    if not seen:
        raise VideoError(f"the video {name!r} has no frames that can be decoded")
    if wanted[-1] >= seen:
        logger.warning("%s holds %d frames, %d can be decoded; frames are taken of those", name, total, seen)
        total, wanted = seen, sampling.choose(seen, rate)
        with _opened(av, path, name) as container:
            found, _ = _decode(av, container, set(wanted), name)
    taken = Outline(tuple(wanted), total, rate)
    return Video(tuple(found[index] for index in wanted), name, taken.seconds, total / rate)


def outline(source: Source, sampling: Sampling | None = None) -> Outline:
    """Return which frames `read_video` takes and when they are shown, without decoding any.

    Raises VideoError.
    """
    sampling = sampling or Sampling()
    images = _images_of(source)
    if images is not None:
        return _outline_of_images(len(images), sampling)
    av, path, name = _file(source)
    with _opened(av, path, name) as container:
        total, rate = _measure(container, name)
    if not total:
        raise VideoError(f"the video {name!r} has no frames")
    return Outline(tuple(sampling.choose(total, rate)), total, rate)


def count_frames(source: Source, sampling: Sampling | None = None) -> int:
    """Return how many frames `read_video` takes, without decoding any. Raises VideoError."""
    return len(outline(source, sampling).chosen)


def _name(source: Source) -> str:
    """Name a video for a message."""
    if isinstance(source, (str, os.PathLike)):
        return shortened(os.fspath(source))
    return f"{shortened(os.fspath(source[0]))} ..." if source else "of no images"


# ---- folders of frames


def _images_of(source: Source) -> list[str] | None:
    """Return the images that are a video's frames, None for a video file. Raises VideoError."""
    if not isinstance(source, (str, os.PathLike)):
        if not source:
            raise VideoError("the video has no frames; give at least one image")
        return [os.fspath(one) for one in source]
    if not os.path.isdir(source):
        return None
    files = sorted(one for one in Path(source).iterdir() if one.suffix[1:].lower() in IMAGE_ENDINGS)
    if not files:
        raise VideoError(f"the video {_name(source)!r} is a folder without images, its frames")
    return [str(one) for one in files]


def _outline_of_images(count: int, sampling: Sampling) -> Outline:
    """Choose among images that are frames: they are taken as they are, unless they are too many."""
    return Outline(tuple(sampling.choose(count, sampling.fps)), count, FOLDER_RATE)


# ---- files


def _file(source: Source) -> tuple[ModuleType, Path, str]:
    """Return PyAV, a video file and its name for messages. Raises VideoError when there is no such file."""
    assert isinstance(source, (str, os.PathLike))
    name, path = _name(source), Path(source)
    if "://" in os.fspath(source):
        raise VideoError(f"the video {name!r} is an address; download it and give the file")
    if not path.is_file():
        raise VideoError(f"the video {name!r} cannot be read: there is no such file")
    if not path.stat().st_size:
        raise VideoError(f"the video {name!r} is empty (0 bytes)")
    return import_optional("av", needed_for="reading a video file", install="av"), path, name


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
