"""One record becomes one sample: ids, labels and pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation
from llava.mm_utils import ImageError, cuts_tiles, load_image, parse_grid_pinpoints
from llava.model.multimodal.media import Square, process_media, process_video
from llava.protocols import ImageProcessor
from llava.train.data.image_folders import folder_of, kind_of_media, outside_folder
from llava.train.labels.preprocess import preprocess, preprocess_multimodal
from llava.train.plan import DataSettings, adapted
from llava.train.records import DataError, Record, has_video, media_names, turns_of
from llava.utils import UserError
from llava.video import Outline, Sampling, Video, outline, read_video

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# input_ids (length,), labels (length,), image (see SampleMaker.make), image_sizes [(width, height)], and
# modalities ["video"] of a video
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

    @property
    def sampling(self) -> Sampling:
        """Which frames of a video are taken."""
        chosen = self.settings
        return Sampling(chosen.frames_upbound, chosen.video_fps, always=chosen.force_sample)

    def make(
        self,
        record: Record,
        *,
        folders: Mapping[str, str | None] | None = None,
        images: Sequence[Image.Image] | None = None,
    ) -> Sample:
        """Prepare a record: input_ids and labels (length,), and `image`.

        image: (3, H, W), with anyres (tiles, 3, H, W), and a list of such tensors for a record with several
        images; (frames, 3, H, W) of a video; zeros for a text in multimodal training. folders: of `image` and
        `video`, before those of the settings. images: decoded ones, when they are at hand. Raises UserError.
        """
        names = media_names(record)
        if has_video(record):
            video = read_video(self.locate(record, folders), self.sampling)
            sample = self.encode(record, video)
            self._add_video(sample, video)
            return sample
        sample = self.encode(record)
        if names:
            if images is None:
                images = [load_image(place) for place in self._places(record, folders)]
            self._add_images(sample, names, images)
        elif self.settings.is_multimodal:
            # a text also goes through the tower and the projector, so that all ranks do the same work
            size = self._input_size()
            tiles = (1,) if self._anyres else ()
            sample["image"] = torch.zeros(*tiles, *size)
            if self._anyres:
                sample["image_sizes"] = [(size[2], size[1])]
        return sample

    def encode(self, record: Record, video: Video | Outline | None = None) -> Sample:
        """Tokenize and label a record's turns: input_ids and labels (length,). Raises UserError.

        video: the record's, or its outline; --add_time_instruction tells of it.
        """
        names, conversation = media_names(record), turns_of(record)
        if video is not None and self.settings.add_time_instruction:
            conversation = _with_time(conversation, video.time_instruction())
        turns = [conversation]
        if names:
            several = len(names) > 1 and not has_video(record)
            turns = preprocess_multimodal(  # type: ignore[assignment]
                turns, self.settings, keep_places=several, conv=self.conv
            )
        masks = self.settings.label_masks
        encoded = preprocess(turns, self.tokenizer, has_image=bool(names), conv=self.conv, label_masks=masks)
        return {"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}

    def outline(self, record: Record, folders: Mapping[str, str | None] | None = None) -> Outline | None:
        """Return which frames of a record's video are taken, None for a record without. Raises UserError."""
        return outline(self.locate(record, folders), self.sampling) if has_video(record) else None

    def locate(self, record: Record, folders: Mapping[str, str | None] | None = None) -> str | list[str]:
        """Return where the video of a record lies: a file, a folder, or its frames. Raises DataError."""
        places = self._places(record, folders)
        return places if isinstance(record["video"], list) else places[0]

    def _places(self, record: Record, folders: Mapping[str, str | None] | None) -> list[str]:
        names, kind = media_names(record), kind_of_media(record)
        flags = {"image": self.settings.image_folder, "video": self.settings.video_folder}
        folder = folder_of(record, folders or {}, flags)
        if folder is None:
            flag = "--image_folder" if kind == "image" else "--video_folder"
            raise DataError(f"it has the {kind} {names[0]!r}, but {flag} is missing")
        for name in names:
            reason = "" if self._may_leave else outside_folder(name, folder, kind)
            if reason:
                raise DataError(reason)
        return [os.path.join(folder, name) for name in names]

    def _add_video(self, sample: Sample, video: Video) -> None:
        try:
            sample["image"] = process_video(video, self._processor)
        except (ValueError, OSError, MemoryError) as error:
            size = f"{len(video.frames)} frames of {video.size[0]}x{video.size[1]}"
            raise ImageError(f"the video {video.name!r} ({size}): {error}") from error
        sample["modalities"] = ["video"]
        if self._anyres:
            sample["image_sizes"] = [video.size]

    def _add_images(self, sample: Sample, names: Sequence[str], images: Sequence[Image.Image]) -> None:
        values = []
        squares = len(images) > 1 and self.settings.pads_several
        for name, image in zip(names, images, strict=True):
            try:
                shown = Square(image) if squares else image
                values.append(process_media([shown], self._processor, self.settings)[0][0])
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


def _with_time(turns: Sequence[Record], words: str) -> list[Record]:
    """Put the time instruction in front of the question about a video, as LLaVA-Video was trained."""

    def told(turn: Record) -> Record:
        if DEFAULT_IMAGE_TOKEN not in turn["value"]:
            return turn
        question = turn["value"].replace(DEFAULT_IMAGE_TOKEN, "")
        return {**turn, "value": f"{DEFAULT_IMAGE_TOKEN}\n{words}\n{question}"}

    return [told(turn) for turn in turns]


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
