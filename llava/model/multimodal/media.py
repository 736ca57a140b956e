"""Images and videos of one prompt, or of many, become pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from PIL import Image

from llava.mm_utils import process_images
from llava.model.multimodal.config import MultimodalConfig
from llava.protocols import ImageProcessor
from llava.video import Video, VideoError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Pixels = torch.Tensor | list[torch.Tensor]
PADDED = SimpleNamespace(image_aspect_ratio="pad")


def process_video(video: Video, processor: ImageProcessor) -> torch.Tensor:
    """Return the pixel values (frames, 3, H, W) of a video, frames as the processor alone makes them."""
    if not video.frames:
        raise VideoError(f"the video {video.name!r} has no frames")
    values = [processor.preprocess(frame, return_tensors="pt")["pixel_values"][0] for frame in video.frames]
    return torch.stack([torch.as_tensor(value) for value in values])


def process_media(
    items: Sequence[Image.Image | Video],
    processor: ImageProcessor,
    config: PreTrainedConfig | MultimodalConfig | SimpleNamespace | object,
    *,
    together: bool,
) -> tuple[Pixels, list[str] | None]:
    """Return pixel values of images and videos, and "image" or "video" for each where there are videos.

    together: they stand in one prompt, where an image that is not alone may be a square without tiles
    (`MultimodalConfig.pads_several`): (1, 3, H, W). Images are processed by the rule of the config.
    """
    videos = [isinstance(item, Video) for item in items]
    padded = together and len(items) > 1 and MultimodalConfig.of(config).pads_several
    if not padded and not any(videos):
        return process_images(images_of(items), processor, config), None
    pixels: list[torch.Tensor] = []
    for item in items:
        if isinstance(item, Video):
            pixels.append(process_video(item, processor))
        else:
            value = process_images([item], processor, PADDED if padded else config)[0]
            pixels.append(value[None] if value.ndim == 3 else value)
    return pixels, ["video" if one else "image" for one in videos] if any(videos) else None


def images_of(items: Sequence[Image.Image | Video]) -> list[Image.Image]:
    """Return the images among items."""
    return [item for item in items if isinstance(item, Image.Image)]
