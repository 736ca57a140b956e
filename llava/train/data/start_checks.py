"""What is wrong with the data as a whole, seen when it has been opened and before a model is loaded."""

from __future__ import annotations

import logging
from typing import Protocol

from llava.train.data.dataset import LazySupervisedDataset
from llava.train.data.image_folders import check_folder, check_folders, folder_of, kind_of_media
from llava.train.data.streaming import StreamingDataset
from llava.train.labels.dialogs import check_dialogs
from llava.train.records import Record, find_fault, has_video, media_names
from llava.utils import UserError, import_optional
from llava.video import VIDEO_ENDINGS

logger = logging.getLogger(__name__)

NO_IMAGE = "no record of the data has an image, although --vision_tower is given; is 'image' its key?"
NO_TOWER = "the data has images or videos, but --vision_tower is missing"


class DataFlags(Protocol):
    """The flags of training that are looked at."""

    image_folder: str | None
    video_folder: str | None
    allow_images_outside_folder: bool
    on_bad_sample: str


def check_data(dataset: object, data_args: DataFlags, *, vision_tower: str | None, template: str) -> None:
    """Refuse data with images that have no tower or no folder, and dialogs that the template cannot hold.

    Warns of a multimodal run without a single image. Of a stream the first samples are looked at. Raises
    UserError naming the flag.
    """
    strict = data_args.on_bad_sample == "error"
    if isinstance(dataset, StreamingDataset):
        _check_stream(dataset, data_args, vision_tower, template if strict else None)
        return
    if not isinstance(dataset, LazySupervisedDataset):
        return
    records = dataset.list_data_dict
    if strict:
        check_dialogs(records, template, name=records.name)
    if vision_tower is None:
        if records.with_images.any():
            raise UserError(NO_TOWER)
        return
    if not records.with_images.any():
        logger.warning(NO_IMAGE)
    # a record that leads out of the folder is left out where bad samples are skipped
    allow = data_args.allow_images_outside_folder or not strict
    check_folders(records, data_args.image_folder, data_args.video_folder, allow_outside=allow)
    if records.with_video.any():
        check_reader(records[int(records.with_video.argmax())])


def has_videos(dataset: object) -> bool:
    """Tell whether records have videos; of a stream that is met when they are read."""
    return isinstance(dataset, LazySupervisedDataset) and bool(dataset.list_data_dict.with_video.any())


def _check_stream(
    stream: StreamingDataset, data_args: DataFlags, vision_tower: str | None, template: str | None
) -> None:
    """Check the first samples of a stream; the others are met when they are read."""
    for raw in stream.peek():
        if raw.fault or find_fault(raw.record):
            continue  # named when it is read
        if template is not None:
            check_dialogs([raw.record], template, name=[raw.name].__getitem__)
        names = media_names(raw.record)
        if names and vision_tower is None:
            raise UserError(NO_TOWER)
        if not raw.images:
            flags = {"image": data_args.image_folder, "video": data_args.video_folder}
            check_folder(folder_of(raw.record, {}, flags), names, raw.name, kind_of_media(raw.record))
        if has_video(raw.record):
            check_reader(raw.record)


def check_reader(record: Record) -> None:
    """Raise UserError when a record's video is a file and what reads it is not installed."""
    if isinstance(record["video"], str) and record["video"].rpartition(".")[2].lower() in VIDEO_ENDINGS:
        import_optional("av", needed_for="training on video files", install="av")
