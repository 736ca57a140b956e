"""The image processor of a vision tower, on PIL, at the size that the tower sees."""

from __future__ import annotations

import logging
from typing import Any

from llava.model.checkpoints.errors import explained
from llava.model.checkpoints.files import read_json
from llava.model.multimodal_encoder.published import PROCESSORS, processor_file
from llava.protocols import ImageProcessor

logger = logging.getLogger(__name__)

PROCESSOR_FILE = "preprocessor_config.json"


def tower_processor(name: str, processor_class: Any, edge: int, resolution: int | None) -> Any:
    """Build the image processor of the tower `name`, from its folder's file if it has one.

    edge: of the images that the tower sees, in pixels. resolution: the same if it is not the one that the
    folder's file is for. Raises CheckpointError for a damaged file.
    """
    if file := processor_file(name, PROCESSOR_FILE):
        read_json(file)  # a damaged file ends here, with its name
        with explained(name, PROCESSOR_FILE):
            processor = processor_class.from_pretrained(name)
        return processor if resolution is None else resize_processor(processor, resolution)
    if known := PROCESSORS.get(name):
        return resize_processor(processor_class(**known), edge)
    logger.warning(
        "%s has no %s; images are processed by the defaults of %s at %d pixels",
        name,
        PROCESSOR_FILE,
        processor_class.__name__,
        edge,
    )
    return resize_processor(processor_class(), edge)


def resize_processor(processor: ImageProcessor, edge: int) -> ImageProcessor:
    """Make an image processor produce squares of `edge` pixels; returns it."""
    if "shortest_edge" in processor.size:
        processor.size["shortest_edge"] = edge
    else:
        processor.size["height"] = processor.size["width"] = edge
    crop_size = getattr(processor, "crop_size", None)
    if crop_size:
        crop_size["height"] = crop_size["width"] = edge
    return processor
