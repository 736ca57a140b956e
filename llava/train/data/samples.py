"""One record becomes one sample: ids, labels and pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image

from llava.conversation import Conversation
from llava.mm_utils import ImageError, cuts_tiles, load_image, parse_grid_pinpoints, process_images
from llava.protocols import ImageProcessor
from llava.train.data.image_folders import outside_folder
from llava.train.labels.preprocess import preprocess, preprocess_multimodal
from llava.train.plan import DataSettings, adapted
from llava.train.records import DataError, Record, image_paths
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# input_ids (length,), labels (length,), image (see SampleMaker.make), image_sizes [(width, height)]
Sample = dict[str, Any]


class SampleMaker:
    """Makes samples of records.

    settings: DataSettings, or an object that has some of its fields. conv: the template; by default
    conversation.default_conversation at the time of reading.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: object, conv: Conversation | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = adapted(DataSettings, settings)
        self.conv = conv
        self._may_leave = self.settings.allow_images_outside_folder

    def make(
        self,
        record: Record,
        *,
        image_folder: str | None = None,
        images: Sequence[Image.Image] | None = None,
    ) -> Sample:
        """Prepare a record: input_ids and labels (length,), and `image`.

        image: (3, H, W), with anyres (tiles, 3, H, W), and a list of such tensors for a record with several
        images; zeros for a text in multimodal training. image_folder: when not that of the settings. images:
        decoded ones, when they are at hand. Raises UserError.
        """
        paths = image_paths(record)
        sample = self.encode(record)
        if paths:
            images = self._load(paths, image_folder) if images is None else images
            self._add_images(sample, paths, images)
        elif self.settings.is_multimodal:
            # a text also goes through the tower and the projector, so that all ranks do the same work
            size = self._input_size()
            tiles = (1,) if self._anyres else ()
            sample["image"] = torch.zeros(*tiles, *size)
            if self._anyres:
                sample["image_sizes"] = [(size[2], size[1])]
        return sample

    def encode(self, record: Record) -> Sample:
        """Tokenize and label a record's turns: input_ids and labels (length,). Raises UserError."""
        paths = image_paths(record)
        turns = [record["conversations"]]
        if paths:
            turns = preprocess_multimodal(  # type: ignore[assignment]
                turns, self.settings, keep_places=len(paths) > 1, conv=self.conv
            )
        masks = self.settings.label_masks
        encoded = preprocess(turns, self.tokenizer, has_image=bool(paths), conv=self.conv, label_masks=masks)
        return {"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}

    def _load(self, paths: Sequence[str], image_folder: str | None) -> list[Image.Image]:
        folder = self.settings.image_folder if image_folder is None else image_folder
        if folder is None:
            raise DataError(f"it has the image {paths[0]!r}, but --image_folder is missing")
        for path in paths:
            reason = "" if self._may_leave else outside_folder(path, folder)
            if reason:
                raise DataError(reason)
        return [load_image(os.path.join(folder, path)) for path in paths]

    def _add_images(self, sample: Sample, names: Sequence[str], images: Sequence[Image.Image]) -> None:
        values = []
        for name, image in zip(names, images, strict=True):
            try:
                values.append(process_images([image], self._processor, self.settings)[0])
            except (ValueError, OSError, MemoryError) as error:
                raise ImageError(f"the image {name!r} ({image.width}x{image.height}): {error}") from error
        sample["image"] = values[0] if len(values) == 1 else values
        if self._anyres:
            sample["image_sizes"] = [image.size for image in images]

    @property
    def _processor(self) -> ImageProcessor:
        return cast("ImageProcessor", self.settings.image_processor)  # images are read behind a tower alone

    @property
    def _anyres(self) -> bool:
        return cuts_tiles(self.settings.image_aspect_ratio)

    def _input_size(self) -> tuple[int, int, int]:
        """Return channels, height and width of what the image processor makes."""
        processor = self._processor
        size = getattr(processor, "crop_size", None) or processor.size
        channels = getattr(processor, "channels", 3)  # those of transformers do not name them
        return channels, size["height"], size["width"]


def choose_tile_grids(wanted: str | None, own: object, *, aspect_ratio: str | None, tile_edge: int) -> Any:
    """Return the tile grids of anyres: those of --image_grid_pinpoints, else the model's own, perhaps None.

    tile_edge: pixels of a tile. Raises UserError for grids that are not made of tiles, or without any that
    `aspect_ratio` needs.
    """
    if wanted is not None:
        grids = parse_grid_pinpoints(wanted, tile_edge)
        if any(edge <= 0 or edge % tile_edge for grid in grids for edge in grid):
            raise UserError(
                f"--image_grid_pinpoints {wanted} has edges that are no multiple of {tile_edge}, the pixels "
                "of a tile"
            )
        return [list(grid) for grid in grids]
    if cuts_tiles(aspect_ratio) and not own:
        raise UserError(
            f"--image_aspect_ratio {aspect_ratio} needs tile grids, which this model's config lacks; give "
            f'them as --image_grid_pinpoints "[[{tile_edge},{2 * tile_edge}],[{2 * tile_edge},{tile_edge}]]"'
        )
    return own
