"""Images and videos of one prompt, or of many, become pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from llava.images import as_image
from llava.mm_utils import process_images
from llava.model.multimodal.config import MultimodalConfig
from llava.protocols import ImageProcessor
from llava.video import Video

Pixels = torch.Tensor | list[torch.Tensor]
PADDED = SimpleNamespace(image_aspect_ratio="pad")


def process_video(video: Video, processor: ImageProcessor) -> torch.Tensor:
    """Return the pixel values (frames, 3, H, W) of a video, frames as the processor alone makes them."""
    values = [processor.preprocess(frame, return_tensors="pt")["pixel_values"][0] for frame in video.frames]
    return torch.stack([torch.as_tensor(value) for value in values])


@dataclass(frozen=True)
class Square:
    """An image that is shown as one padded square, whatever the config's rule for an image that is alone."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image."""
        return self.image.size

    @property
    def mode(self) -> str:
        """What it is; see Video.mode."""
        return f"square {self.image.mode}"

    def tobytes(self) -> bytes:
        """Return the image's content."""
        return self.image.tobytes()


Item = Image.Image | Video | Square


def as_item(source: Item | str | Path) -> Item:
    """Return an opened image of a Pillow image, a path or URL; videos and squares as they are."""
    return source if isinstance(source, (Video, Square)) else as_image(source)


def arranged(items: Sequence[Item], config: object) -> list[Item]:
    """Return the images and videos of one prompt as its model is shown them.

    Where images that are not alone are squares (`MultimodalConfig.pads_several`), they are wrapped so.
    """
    if len(items) < 2 or not MultimodalConfig.of(config).pads_several:
        return list(items)
    return [Square(item) if isinstance(item, Image.Image) else item for item in items]


def process_media(
    items: Sequence[Item], processor: ImageProcessor, config: object
) -> tuple[Pixels, list[str] | None]:
    """Return pixel values of images and videos, and "image" or "video" for each where there are videos.

    Images are processed by the rule of the config, squares become (1, 3, H, W), videos (frames, 3, H, W).
    """
    images = [item for item in items if isinstance(item, Image.Image)]
    if len(images) == len(items):
        return process_images(images, processor, config), None
    pixels: list[torch.Tensor] = []
    for item in items:
        if isinstance(item, Video):
            pixels.append(process_video(item, processor))
            continue
        image, rule = (item.image, PADDED) if isinstance(item, Square) else (item, config)
        value = process_images([image], processor, rule)[0]
        pixels.append(value[None] if value.ndim == 3 else value)
    videos = [isinstance(item, Video) for item in items]
    return pixels, ["video" if one else "image" for one in videos] if any(videos) else None
